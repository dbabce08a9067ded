"""How a pool learns: every number that the life of a skill depends on, as plain values.

Made at the door from the person's settings; knows nothing of where they were written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from dylora_moe.errors import ConfigError
from dylora_moe.experts.sites import Targets
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.ports import Registry
from dylora_moe.records import Example
from dylora_moe.routing.correction import GateKind
from dylora_moe.routing.routing import Granularity
from dylora_moe.skills.growth import GrowthLimits
from dylora_moe.skills.novelty import NoveltyDetector
from dylora_moe.training.objective import RouterLossWeights
from dylora_moe.training.phases import Phase

Representation = Literal["tap", "last-layer", "gradient"]
"""What a novelty test compares: stored tap features, mean last-layer states of the prompts, or
gradients of the answers' loss."""


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """What a new expert looks like; `start` is zero, or the merge of the nearest experts, and
    `max_rank` what its rank may grow to while it trains."""

    rank: int
    alpha: float
    dropout: float
    targets: Targets
    start: Literal["zero", "merge"]
    max_rank: int


@dataclass(frozen=True, slots=True)
class TrafficRules:
    """How unlabelled mixed rows are sorted.

    Attributes:
        share: of the skills' own rows that may be called strange.
        alike: mean likeness from which on two clusters are one.
        least: rows of a cluster that is taken for a skill's.
    """

    share: float = 0.05
    alike: float = 0.5
    least: int = 64


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to learn.

    Attributes:
        max_length: tokens of a row; the model's context where None.
        drop_long: longer rows are left out, not refused.
        detector: makes the novelty test for the live pool and what has happened in it.
        representation: what the test compares.
        new_expert: phases of a new expert, and of one whose answers are revised.
        more_data: phases of an expert that gets more data of the same answers.
        replay: stored rows of an expert that train beside each new one.
        fit_steps: of rehearsal on stored features after each change.
        gate, granularity, top_k: of the router; what the pool has where None.
        none_share: share of the skills' own rows that the router may send to no expert; what the
            pool has where None.
        tolerance: relative rise of an older skill's loss that the gate lets through.
        better: relative fall of its validation loss that makes a new version worth it.
        generate: validation rows a skill whose answers are generated and checked.
        evaluation: further sets of rows that every training is measured on, by name.
        target: the one that stops a training and says what is best; the skill's own rows if None.
        traffic: how unlabelled mixed rows are sorted.
        temperature: of what teachers say, in phases that distil.
        fingerprint: of all settings; a run is only resumed under the same ones.
    """

    seed: int
    validation_fraction: float
    max_length: int | None
    drop_long: bool
    detector: Callable[[LivePool, Registry], NoveltyDetector]
    representation: Representation
    growth: GrowthLimits
    shape: ExpertShape
    new_expert: tuple[Phase, ...]
    more_data: tuple[Phase, ...]
    replay: float
    gate: GateKind | None
    granularity: Granularity | None
    top_k: int | None
    none_share: float | None
    fit_steps: int
    losses: RouterLossWeights
    tolerance: float
    generate: int
    gradient_checkpointing: bool
    fingerprint: str
    better: float = 0.005
    evaluation: Mapping[str, tuple[Example, ...]] = field(default_factory=dict)
    target: str | None = None
    traffic: TrafficRules = TrafficRules()
    temperature: float = 2.0

    @property
    def apart(self) -> frozenset[str]:
        """Keys of the rows of the named sets, which never train."""
        return frozenset(row.key for rows in self.evaluation.values() for row in rows)


@dataclass(frozen=True, slots=True)
class Order:
    """What a person overrules: which skill, that it is new, what a new expert is called."""

    into: str | None = None
    as_new: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        if self.into is not None and self.as_new:
            raise ConfigError(
                f"into '{self.into}' and as_new contradict each other; give one of them"
            )
