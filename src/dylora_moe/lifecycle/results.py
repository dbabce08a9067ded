"""What planning, learning and answering hand back to the person who asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dylora_moe.records import SkillScore, Verdict

Action = Literal[
    "created", "new version", "covered", "statistics", "waiting", "rejected", "unchanged"
]


@dataclass(frozen=True, slots=True)
class Cost:
    """What learning an arrival would take: trained tokens over all phases, wall-clock seconds on
    this machine (from the measured rate), new parameters and bytes on disk."""

    tokens: int
    seconds: float
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The verdict before any training.

    Attributes:
        base_loss: token-mean loss of the base on the answers; None if too few rows came.
        nearest_losses: the same of the nearest experts, by alias.
        waiting: rows in the waiting room that would be learned along.
    """

    arrival: str
    rows: int
    tokens: int
    verdict: Verdict
    base_loss: float | None
    nearest_losses: Mapping[str, float]
    cost: Cost
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class LearnResult:
    """What became of one arrival; `scores` are the pool's skills after it, by name."""

    arrival: str
    verdict: Verdict
    action: Action
    expert: str | None
    version: int | None
    skill: str | None
    scores: Mapping[str, SkillScore]
    revision: int
    run_id: str
    seconds: float
    message: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated answer and where it came from; `str()` of it is the text.

    Attributes:
        expert: alias of the expert with the largest weight, or `base`.
        weights: weight of each expert that took part, by alias.
        none: the router's probability that no expert is meant.
        tokens: generated tokens.
    """

    text: str
    expert: str
    version: int | None
    weights: Mapping[str, float]
    none: float
    tokens: int

    def __str__(self) -> str:
        return self.text
