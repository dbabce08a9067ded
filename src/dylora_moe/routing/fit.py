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
from jaxtyping import Float
from torch import Tensor

from dylora_moe.errors import TrainingError
from dylora_moe.routing.calibration import NoneCalibration, best_temperature, calibrate
from dylora_moe.routing.judge import HeldOut, Judge
from dylora_moe.routing.rehearsal import rehearse
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
    stored = rehearse(
        router.table,
        features_by_skill,
        none_features,
        holdout=holdout,
        seed=seed,
        only_held_out=steps == 0,
    )
    judge = Judge(router, stored, balance, z, entropy, label_smoothing)
    before = after = judge.held_out()
    losses: list[float] = []
    best_step = 0
    if judge.possible and steps > 0:
        losses, best_step = _train(judge, before, steps, lr, weight_decay, evaluate_every, patience)
        after = judge.held_out()
    elif not router.correction.is_zero:
        zero = judge.zero_held_out()
        if not _proven(zero.losses - before.losses):
            # Nothing here shows that what was learned is of use.
            _clear(router)
            after = zero
    learned = None if router.correction.is_zero else judge
    none = calibrate_closed(router, features_by_skill, none_features, learned)
    return FitReport(
        steps=len(losses),
        best_step=best_step,
        loss_before=before.loss,
        loss_after=after.loss,
        accuracy_before=before.accuracy,
        accuracy_after=after.accuracy,
        temperature=router.temperature,
        none=none,
        losses=tuple(losses),
    )


def _train(
    judge: Judge,
    start: HeldOut,
    steps: int,
    lr: float,
    weight_decay: float,
    evaluate_every: int,
    patience: int,
) -> tuple[list[float], int]:
    """Trains, leaves what is proven in place; the losses and its step."""
    router = judge.router
    parameters = list(router.correction.parameters())
    router.log_temperature.data.fill_(math.log(judge.train_temperature()))
    groups = [
        {"params": parameters, "weight_decay": weight_decay},
        {"params": [router.log_temperature], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    kept = [p.detach().clone() for p in parameters]
    began, rows_zero = kept, judge.zero_held_out().losses
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
        found = judge.held_out()
        if found.loss < best.loss - 1e-4 * abs(best.loss):
            best, best_step = found, step
            kept = [p.detach().clone() for p in parameters]
        elif step - best_step >= patience * evaluate_every:
            break
    optimizer.zero_grad()
    start_helps = _proven(rows_zero - start.losses)
    if not _proven(rows_zero - best.losses) or (
        start_helps and not _proven(start.losses - best.losses)
    ):
        best_step, kept = 0, began
        if not start_helps:
            _restore(parameters, kept)
            _clear(router)
            return losses, 0
    _restore(parameters, kept)
    return losses, best_step


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


@torch.no_grad()
def calibrate_closed(
    router: DynamicHybridRouter,
    features_by_skill: Mapping[str, Float[Tensor, "_ d_features"]],
    none_features: Float[Tensor, "_ d_features"] | None,
    learned: Judge | None = None,
) -> NoneCalibration | None:
    """Sets temperature and threshold, the closed form judging each row without having seen it.

    Args:
        router: changed in place: temperature and threshold of *no expert*.
        features_by_skill, none_features: as of `fit_correction`.
        learned: judge of a correction that is not zero; the temperature goes by it then.

    Raises:
        RoutingError: the skills are not the router's.
    """
    stored = rehearse(router.table, features_by_skill, none_features)
    closed = router.with_none(stored.closed)
    logits, labels = closed, stored.labels
    if learned is not None:
        # This fit trained on all rows but these. They still chose what was kept, and an earlier fit
        # or the training of an expert may have learned from some of them.
        logits, labels = learned.raw(learned.out).cpu(), learned.labels[learned.out].cpu()
    if int(labels.unique().numel()) > 1:
        router.log_temperature.fill_(math.log(best_temperature(logits, labels)))
    if none_features is None:
        return None
    score = none_score(closed)
    found = calibrate(score[stored.labels > 0], score[stored.labels == 0], router.none_share)
    router.none_threshold = found.threshold
    return found
