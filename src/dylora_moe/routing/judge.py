"""What rows that nothing learned from say of a correction, and the loss of those it learns from.

Knows the router and rehearsed rows; changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dylora_moe.routing.calibration import best_temperature
from dylora_moe.routing.losses import balance_loss, entropy_loss, z_loss
from dylora_moe.routing.rehearsal import Rehearsal
from dylora_moe.routing.router import DynamicHybridRouter


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Cross entropy of each held-out row at the best temperature, and the share that was right."""

    losses: Float[Tensor, " n"]
    accuracy: float

    @property
    def loss(self) -> float:
        return float(self.losses.mean())


class Judge:
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
        self.possible = bool(self.out.any()) and stored.classes > 1
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
    def held_out(self) -> HeldOut:
        """What the held-out rows say of the present correction.

        At their best temperature, since that is what calibration gives it afterwards.
        """
        return (
            self.zero_held_out()
            if self.router.correction.is_zero
            else self._seen(self.raw(self.out))
        )

    @torch.no_grad()
    def zero_held_out(self) -> HeldOut:
        """What they would say of none at all."""
        return self._seen(self.router.with_none(self.closed[self.out]))

    def _seen(self, logits: Float[Tensor, "n n_rows"]) -> HeldOut:
        logits, labels = logits.cpu(), self.labels[self.out].cpu()
        if not self.possible:
            return HeldOut(torch.empty(0), math.nan)
        scaled = logits.double() / best_temperature(logits, labels)
        losses = torch.nn.functional.cross_entropy(scaled, labels, reduction="none")
        return HeldOut(losses, float((logits.argmax(-1) == labels).float().mean()))

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
