"""Keeps the weights that did best on the target, and says when waiting longer is vain.

Knows losses, steps and named tensors; knows nothing of how they were measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Weights = dict[str, Tensor]


class BestWeights:
    """The best of the evaluations so far.

    Args:
        patience: evaluations without a better loss after which it is `exhausted`.

    Attributes:
        loss: lowest loss on the target; infinite before the first evaluation.
        step: the optimizer step it was reached at.
        metrics: every evaluation set's loss at that step.
        weights: a copy of the trained tensors at that step, on the CPU.
        evaluated_at: step of the last evaluation, -1 before the first.
        start_loss: loss of the first evaluation: what the phase began with.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.loss = math.inf
        self.step = -1
        self.stale = 0
        self.evaluated_at = -1
        self.start_loss = math.inf
        self.metrics: dict[str, float] = {}
        self.weights: Weights = {}

    @property
    def exhausted(self) -> bool:
        """Whether `patience` evaluations in a row brought nothing better."""
        return self.stale >= self.patience

    def offer(
        self,
        step: int,
        loss: float,
        metrics: Mapping[str, float],
        weights: Callable[[], Weights],
    ) -> bool:
        """Takes note of an evaluation; copies the weights if it is the best. True if it is."""
        is_best = loss < self.loss
        # Before anything is noted: whoever breaks this off finds what was there before.
        found = (dict(metrics), weights()) if is_best else (self.metrics, self.weights)
        if self.evaluated_at < 0:
            self.start_loss = loss
        if is_best:
            self.loss, self.step, self.stale = loss, step, 0
            self.metrics, self.weights = found
        else:
            # The state a phase starts from is measured too, but training has not been tried yet.
            self.stale += step > 0
        self.evaluated_at = step
        return is_best

    def be_patient(self) -> None:
        """Counts the evaluations without a better loss anew: something was changed."""
        self.stale = 0

    def carry(self, patience: int) -> BestWeights:
        """The start of a next phase, which begins with these weights and need not measure them."""
        following = BestWeights(patience)
        following.offer(0, self.loss, self.metrics, lambda: self.weights)
        return following

    def state(self) -> dict[str, Any]:
        """Everything but the weights, as JSON values."""
        return {
            "loss": self.loss if math.isfinite(self.loss) else None,
            "step": self.step,
            "stale": self.stale,
            "evaluated_at": self.evaluated_at,
            "start_loss": self.start_loss if math.isfinite(self.start_loss) else None,
            "metrics": self.metrics,
        }

    def load(self, state: Mapping[str, Any], weights: Weights) -> None:
        """The inverse of `state`."""
        self.loss = math.inf if state["loss"] is None else state["loss"]
        self.step, self.stale = state["step"], state["stale"]
        self.evaluated_at = state["evaluated_at"]
        self.start_loss = math.inf if state["start_loss"] is None else state["start_loss"]
        self.metrics, self.weights = dict(state["metrics"]), weights
