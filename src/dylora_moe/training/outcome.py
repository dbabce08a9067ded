"""What a training hands back: plain numbers, phase by phase. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Growth:
    """The rank grew after so many steps of a phase, from `before` to `after`."""

    step: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Freeze:
    """After so many steps of a phase the blocks below `block` learned no more."""

    step: int
    block: int


@dataclass(frozen=True, slots=True)
class PhaseOutcome:
    """One phase.

    Attributes:
        steps: optimizer steps taken; `planned_steps` if it was not stopped early.
        warmup_steps: those of `planned_steps` in which the rate rose.
        first_loss, last_loss: answer loss of the first and the last update on its own rows.
        start_loss: loss on the target before the phase.
        best_loss: lowest loss on the target, at `best_step` (0: what the phase began with).
        padding_fraction: share of padding in its forward passes.
        pass_tokens: that a forward pass might have at its end, with its padding.
        growths, freezes: in order; a growth before whose step the best weights were reached is
            taken back with all that came after them.
    """

    name: str
    steps: int
    planned_steps: int
    warmup_steps: int
    epochs: float
    tokens: int
    seconds: float
    first_loss: float | None
    last_loss: float | None
    start_loss: float
    best_loss: float
    best_step: int
    stopped_early: bool
    padding_fraction: float
    pass_tokens: int
    growths: tuple[Growth, ...] = ()
    freezes: tuple[Freeze, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PhaseOutcome:
        """The inverse of `to_json`."""
        growths = tuple(Growth(**one) for one in values["growths"])
        freezes = tuple(Freeze(**one) for one in values["freezes"])
        return cls(**{**values, "growths": growths, "freezes": freezes})


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """A whole training; the model then holds the best weights, frozen.

    Attributes:
        start_loss: loss on the target before the first phase.
        best_loss: of the weights kept, on the target.
        evaluation: of the weights kept, on every evaluation set.
        flops: floating point operations of the updates.
        peak_memory_bytes: CUDA's peak, elsewhere the process's largest resident size.
        rank: of the weights kept.
        trainable_parameters: of expert and, where a phase trained it, gate.
        trainable_share: of all parameters of base, experts and router.
        bytes: of the expert in memory.
        resumed: whether it went on from an earlier run's checkpoint.
    """

    expert_id: str
    phases: tuple[PhaseOutcome, ...]
    steps: int
    tokens: int
    seconds: float
    start_loss: float
    best_loss: float
    evaluation: Mapping[str, float]
    flops: float
    peak_memory_bytes: int
    tokens_per_second: float
    padding_fraction: float
    rank: int
    trainable_parameters: int
    trainable_share: float
    bytes: int
    warnings: tuple[str, ...]
    resumed: bool

    @property
    def steps_after_warmup(self) -> int:
        """Steps beyond each phase's warm-up: what maturity counts."""
        return sum(max(0, phase.steps - phase.warmup_steps) for phase in self.phases)

    def numbers(self) -> dict[str, Any]:
        """The numbers of the event `trained`, as JSON values."""
        return {
            "phases": [phase.to_json() for phase in self.phases],
            "steps": self.steps,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "start_loss": self.start_loss,
            "best_loss": self.best_loss,
            "evaluation": dict(self.evaluation),
            "flops": self.flops,
            "peak_memory_bytes": self.peak_memory_bytes,
            "tokens_per_second": self.tokens_per_second,
            "padding_fraction": self.padding_fraction,
            "rank": self.rank,
            "trainable_parameters": self.trainable_parameters,
            "trainable_share": self.trainable_share,
            "bytes": self.bytes,
            "warnings": list(self.warnings),
            "resumed": self.resumed,
        }
