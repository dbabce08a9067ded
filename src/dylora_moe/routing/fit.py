"""Rehearsal: the gate's correction and temperature trained on stored features.

Knows the router and feature vectors; knows neither the model nor the experts' losses. The
correction is kept only where it provably helps rows that this fit's training and the closed form
have not seen; being chosen on those few rows, it can still be a little worse on others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dylora_moe.errors import TrainingError
from dylora_moe.routing.calibration import NoneCalibration, best_temperature, calibrate
from dylora_moe.routing.losses import balance_loss, entropy_loss, z_loss
from dylora_moe.routing.rehearsal import Rehearsal, rehearse
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.routing.selection import none_score


@dataclass(frozen=True, slots=True)
class FitReport:
    """What a fit did.

    Attributes:
        steps: optimizer steps taken.
        best_step: the step whose correction was kept; 0 where it is the start's, or zero.
        loss_before: cross entropy of the held-out rows at the start, at its best temperature.
        loss_after: the same for what was kept; optimistic, since these rows chose it.
        accuracy_before: share of the held-out rows whose likeliest row was theirs.
        accuracy_after: the same for what was kept; optimistic too.
        temperature: the calibrated one.
        none: the threshold of *no expert*; None where it has no row.
        losses: training loss of every step.
    """

    steps: int
    best_step: int
    loss_before: float
    loss_after: float
    accuracy_before: float
    accuracy_after: float
    temperature: float
    none: NoneCalibration | None
    losses: tuple[float, ...]


def fit_correction(
    router: DynamicHybridRouter,
    features_by_skill: Mapping[str, Float[Tensor, "_ d_features"]],
    none_features: Float[Tensor, "_ d_features"] | None = None,
    *,
    steps: int = 150,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    seed: int = 0,
    balance: float = 0.01,
    z: float = 0.0,
    entropy: float = 0.0,
    label_smoothing: float = 0.0,
    holdout: float = 0.2,
    evaluate_every: int = 5,
    patience: int = 6,
) -> FitReport:
    """Trains correction and temperature by cross entropy, then calibrates both numbers.

    Full-batch AdamW. Each row's closed-form logits come from a gate fitted without it. Every
    `evaluate_every` steps the held-out rows are scored; after `patience` evaluations without a
    better one it stops. Kept is the correction found, or else the one at the start, whichever is
    provably better than none at all on those rows; where neither is, it becomes zero and the closed
    form stands alone.

    Args:
        router: changed in place: correction, temperature, threshold of *no expert*.
        features_by_skill: stored rows of every skill of the router.
        none_features: the base's own prompts, if the router has a row for them.
        steps: at most; 0 trains nothing, and only judges what was learned before.
        balance, z, entropy: coefficients of the auxiliary losses.
        holdout: share of each class's rows that is kept back.

    Raises:
        RoutingError: the skills are not the router's.
        TrainingError: the loss is not finite; the correction is then the best one so far.
    """
    stored = rehearse(router.table, features_by_skill, none_features, holdout=holdout, seed=seed)
    judge = _Judge(router, stored, balance, z, entropy, label_smoothing)
    before, accuracy = judge.held_out() if judge.possible else (math.nan, math.nan)
    losses: list[float] = []
    best, best_step = before, 0
    if judge.possible and steps > 0:
        losses, best, best_step = _train(
            judge, before, steps, lr, weight_decay, evaluate_every, patience
        )
    elif not judge.possible or not _proven(judge.zero_row_losses() - judge.row_losses()):
        # Nothing here shows that what was learned is of use.
        _clear(router)
        best = judge.held_out()[0] if judge.possible else math.nan
    accuracy_after = judge.held_out()[1] if judge.possible else math.nan
    none = _calibrate(router, features_by_skill, none_features, judge)
    return FitReport(
        steps=len(losses),
        best_step=best_step,
        loss_before=before,
        loss_after=best,
        accuracy_before=accuracy,
        accuracy_after=accuracy_after,
        temperature=router.temperature,
        none=none,
        losses=tuple(losses),
    )


def _train(
    judge: _Judge,
    start: float,
    steps: int,
    lr: float,
    weight_decay: float,
    evaluate_every: int,
    patience: int,
) -> tuple[list[float], float, int]:
    """Trains, leaves what is proven in place; losses, its held-out one and its step."""
    router = judge.router
    parameters = list(router.correction.parameters())
    router.log_temperature.data.fill_(math.log(judge.train_temperature()))
    groups = [
        {"params": parameters, "weight_decay": weight_decay},
        {"params": [router.log_temperature], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    kept = [p.detach().clone() for p in parameters]
    began, rows_began = kept, judge.row_losses()
    rows_best, rows_zero = rows_began, judge.zero_row_losses()
    losses: list[float] = []
    best, best_step = start, 0
    temperature = router.log_temperature.detach().clone()
    for step in range(1, steps + 1):
        loss = judge.loss()
        if not math.isfinite(loss.item()):
            _restore([*parameters, router.log_temperature], [*kept, temperature])
            raise TrainingError(
                f"the gate's loss is not finite at step {step}; lower its learning rate (now {lr})"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % evaluate_every and step != steps:
            continue
        found, _ = judge.held_out()
        if found < best - 1e-4 * abs(best):
            best, best_step, rows_best = found, step, judge.row_losses()
            kept = [p.detach().clone() for p in parameters]
        elif step - best_step >= patience * evaluate_every:
            break
    optimizer.zero_grad()
    start_helps = _proven(rows_zero - rows_began)
    if not _proven(rows_zero - rows_best) or (start_helps and not _proven(rows_began - rows_best)):
        best, best_step, kept = start, 0, began
        if not start_helps:
            _restore(parameters, kept)
            _clear(router)
            return losses, float(rows_zero.mean()), 0
    _restore(parameters, kept)
    return losses, best, best_step


def _proven(gains: Float[Tensor, " n"]) -> bool:
    """Whether a gain is more than chance: its mean over two of its standard errors.

    The best of many steps on a few dozen rows looks like a gain even where there is none, and a
    correction that is kept for nothing takes inputs away from skills it never hurt there.
    """
    return len(gains) > 1 and float(gains.mean()) > 2 * float(gains.std()) / math.sqrt(len(gains))


@torch.no_grad()
def _clear(router: DynamicHybridRouter) -> None:
    """Sets the correction to zero; the hidden layer, if it has one, stays."""
    router.correction.delta_W.zero_()
    router.correction.delta_b.zero_()


@torch.no_grad()
def _restore(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


class _Judge:
    """Losses of the router's present correction on the training and on the held-out rows."""

    def __init__(
        self,
        router: DynamicHybridRouter,
        stored: Rehearsal,
        balance: float,
        z: float,
        entropy: float,
        smoothing: float,
    ) -> None:
        self.balance, self.z, self.entropy, self.smoothing = balance, z, entropy, smoothing
        device = router.log_temperature.device
        self.router = router
        self.features = stored.features.to(device)
        self.closed = stored.closed.to(device)
        self.labels: Int[Tensor, " n"] = stored.labels.to(device)
        self.out: Bool[Tensor, " n"] = stored.held_out.to(device)
        # One class cannot be told from itself, and without held-out rows nothing says when to stop.
        self.possible = bool(self.out.any()) and int(self.labels.unique().numel()) > 1
        # Every class weighs the same, however many rows are stored of it.
        counts = torch.bincount(self.labels[~self.out], minlength=self.closed.shape[1])
        self.class_weight = 1.0 / counts.clamp_min(1).float()
        self.class_weight *= counts.sum() / counts.gt(0).sum() * counts.gt(0)

    def raw(self, rows: Tensor) -> Float[Tensor, "_ n_rows"]:
        """Logits before the temperature."""
        return self.router.corrected(self.closed[rows], self.features[rows])

    @torch.no_grad()
    def train_temperature(self) -> float:
        return best_temperature(self.raw(~self.out).cpu(), self.labels[~self.out].cpu())

    @torch.no_grad()
    def held_out(self) -> tuple[float, float]:
        """Cross entropy at its best temperature, and accuracy, of the held-out rows.

        At its best temperature, since that is what calibration gives it afterwards.
        """
        logits, labels = self.raw(self.out).cpu(), self.labels[self.out].cpu()
        return float(self.row_losses().mean()), float((logits.argmax(-1) == labels).float().mean())

    @torch.no_grad()
    def row_losses(self) -> Float[Tensor, " n_held_out"]:
        """The same cross entropy row by row."""
        return self._losses_of(self.raw(self.out).cpu())

    @torch.no_grad()
    def zero_row_losses(self) -> Float[Tensor, " n_held_out"]:
        """What they would be without any correction."""
        return self._losses_of(self.router.with_none(self.closed[self.out]).cpu())

    def _losses_of(self, logits: Float[Tensor, "n n_rows"]) -> Float[Tensor, " n"]:
        labels = self.labels[self.out].cpu()
        scaled = logits.double() / best_temperature(logits, labels, steps=30)
        return torch.nn.functional.cross_entropy(scaled, labels, reduction="none")

    def loss(self) -> Tensor:
        """Training loss, differentiable in correction and temperature."""
        train = ~self.out
        logits = self.raw(train) / self.router.log_temperature.exp()
        labels = self.labels[train]
        if not self.router.table.has_none:
            # A row that is not fitted is no answer to smooth the labels towards.
            logits, labels = logits[:, 1:], labels - 1
        weight = self.class_weight[-logits.shape[1] :]
        total = torch.nn.functional.cross_entropy(
            logits, labels, weight=weight, label_smoothing=self.smoothing
        )
        probabilities = logits.softmax(-1)
        if self.balance:
            skills = probabilities[:, -len(self.router.rows) :] @ self.router.membership
            total = total + self.balance * balance_loss(skills, self.labels[train] > 0)
        if self.z:
            total = total + self.z * z_loss(logits)
        if self.entropy:
            total = total + self.entropy * entropy_loss(probabilities)
        return total


@torch.no_grad()
def _calibrate(
    router: DynamicHybridRouter,
    features_by_skill: Mapping[str, Tensor],
    none_features: Tensor | None,
    judge: _Judge,
) -> NoneCalibration | None:
    """Sets temperature and threshold, the closed form judging each row without having seen it."""
    stored = rehearse(router.table, features_by_skill, none_features)
    logits, labels = router.corrected(stored.closed, stored.features).cpu(), stored.labels
    learned = any(bool(p.any()) for p in (router.correction.delta_W, router.correction.delta_b))
    if learned and judge.possible:
        # This fit trained on all rows but these. They still chose what was kept, and an earlier fit
        # or the training of an expert may have learned from some of them.
        logits, labels = judge.raw(judge.out).cpu(), judge.labels[judge.out].cpu()
    if int(labels.unique().numel()) > 1:
        router.log_temperature.fill_(math.log(best_temperature(logits, labels)))
    if none_features is None:
        return None
    score = none_score(router.with_none(stored.closed))
    found = calibrate(score[stored.labels > 0], score[stored.labels == 0], router.none_share)
    router.none_threshold = found.threshold
    return found
