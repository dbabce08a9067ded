"""What one phase of an expert's training is told: epochs, rates, schedule, collaboration.

Knows numbers and how they move over a phase; knows no model. `seeding` and `consolidation` are the
two phases of a new expert (docs/architecture.md, "The way of one arrival"), with its defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dylora_moe.errors import ConfigError

Schedule = Literal["cosine", "warmup_stable_decay", "constant"]

DECAY_SHARE = 0.2
"""Share of a `warmup_stable_decay` phase in which the rate falls."""

_TRANSFORMERS_NAMES: dict[str, str] = {
    "cosine": "cosine",
    "warmup_stable_decay": "warmup_stable_decay",
    "constant": "constant_with_warmup",
}


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase.

    Attributes:
        name: as logged; unique among the phases of one training.
        epochs: passes over the rows; may be a fraction.
        learning_rate: the expert's highest rate.
        gate_learning_rate: the gate's, on the same schedule.
        warmup_ratio: share of the steps in which the rates rise from zero.
        weight_decay: of the expert's matrices; the gate has none.
        batch_size: rows in one forward pass; where packed, bins hold as many mean rows.
        accumulation: forward passes in one optimizer step.
        collaboration: share of the dense mixture (this expert and its frozen neighbours, by the
            router's softmax) in the weights, from the first step to the last; the rest is this
            expert alone. An end of 0.0 means that the phase ends exactly one-hot.
        train_gate: whether the router learns along.
        patience: evaluations (one an epoch) without a better loss before the phase stops.
        max_examples: rows the phase takes of the training rows; all where None.
        packing: rows behind one another with block-diagonal attention instead of padding.
        scheduler: shape of the rate over the phase.
        distillation: coefficient of the divergence from the teachers, where there are any.
        max_rank: up to which the expert's rank doubles whenever validation stalls; it stays where
            None (`growth`).
        grow_below: relative fall of the best loss over an epoch below which validation stalls.
        freeze_below: relative change of a block over an epoch below which it has converged and
            learns no more; none does at 0 (`freezing`).
    """

    name: str
    epochs: float = 3.0
    learning_rate: float = 2e-3
    gate_learning_rate: float = 2e-5
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    batch_size: int = 8
    accumulation: int = 1
    collaboration: tuple[float, float] = (0.25, 0.0)
    train_gate: bool = False
    patience: int = 2
    max_examples: int | None = None
    packing: bool = False
    scheduler: Schedule = "cosine"
    distillation: float = 0.0
    max_rank: int | None = None
    grow_below: float = 0.01
    freeze_below: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs <= 0 or self.batch_size < 1 or self.accumulation < 1 or self.patience < 1:
            raise ConfigError(
                f"phase {self.name}: epochs {self.epochs}, batch_size {self.batch_size}, "
                f"accumulation {self.accumulation}, patience {self.patience}; give positive numbers"
            )
        if not all(0.0 <= share <= 1.0 for share in self.collaboration):
            raise ConfigError(
                f"phase {self.name}: collaboration {self.collaboration}; give two shares, 0 to 1"
            )
        if self.distillation < 0.0:
            raise ConfigError(
                f"phase {self.name}: distillation {self.distillation}; give 0 or a positive number"
            )
        if self.scheduler not in _TRANSFORMERS_NAMES:
            raise ConfigError(
                f"phase {self.name}: no scheduler {self.scheduler!r}; "
                f"use one of: {', '.join(_TRANSFORMERS_NAMES)}"
            )

    def dense_share(self, step: int, steps: int) -> float:
        """Share of the dense mixture at `step` of `steps` (from 0): linear, exact at both ends."""
        start, end = self.collaboration
        if step >= steps - 1:
            return end
        return start + (end - start) * step / (steps - 1)


def seeding(**changes: Any) -> Phase:
    """Few examples at a high rate, in dense collaboration with the nearest frozen experts."""
    values: dict[str, Any] = {
        "name": "seeding",
        "epochs": 1.0,
        "learning_rate": 4e-3,
        "scheduler": "warmup_stable_decay",
        "collaboration": (0.5, 0.25),
        "max_examples": 64,
    }
    return Phase(**(values | changes))


def consolidation(**changes: Any) -> Phase:
    """All examples at a lower rate, the gate trained along, from dense to exactly one-hot."""
    values: dict[str, Any] = {
        "name": "consolidation",
        "epochs": 3.0,
        "learning_rate": 2e-3,
        "collaboration": (0.25, 0.0),
        "train_gate": True,
    }
    return Phase(**(values | changes))


def scheduler_arguments(phase: Phase, steps: int) -> dict[str, Any]:
    """`transformers.get_scheduler`'s arguments for the phase, without the optimizer."""
    decay = max(1, round(DECAY_SHARE * steps))
    # At least one step at the full rate: tiny phases would otherwise be all warm-up and decay.
    warmup = min(round(phase.warmup_ratio * steps), max(0, steps - 1))
    if phase.scheduler == "warmup_stable_decay":
        decay = min(decay, max(1, steps - warmup))
        specific = {"num_decay_steps": decay}
    else:
        specific = {}
    return {
        "name": _TRANSFORMERS_NAMES[phase.scheduler],
        "num_warmup_steps": warmup,
        "num_training_steps": steps,
        "scheduler_specific_kwargs": specific,
    }
