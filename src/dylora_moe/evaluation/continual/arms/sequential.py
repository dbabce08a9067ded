"""One LoRA that goes on training from visit to visit: alone, with replay, or held by a penalty.

The arm is told where a visit ends, which is kind to it: this project's pool is not. What it keeps
of earlier visits (`Memory`) is all that makes the three arms differ.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from dylora_moe.evaluation.continual.answers import answer_rows
from dylora_moe.evaluation.continual.arms.arm import ArmKind, Setting
from dylora_moe.evaluation.continual.arms.lora_learner import Lesson, LoraLearner
from dylora_moe.evaluation.continual.arms.visits import WITH_BORDERS, VisitRows, visits_of
from dylora_moe.evaluation.continual.results import ArmResult, Stage
from dylora_moe.experts.gates import Gates
from dylora_moe.records import Example
from dylora_moe.training.objective import Penalty

ONE = "expert_1"
"""The only adapter."""

REPLAYED = 0.02
"""Share of a visit's rows that are kept, and trained on again in every later visit."""


class Memory(Protocol):
    """What an arm keeps of the visits it has learned."""

    def rows(self) -> tuple[Example, ...]:
        """Earlier rows that train along."""
        ...

    def penalty(self) -> Penalty | None:
        """What holds the adapter where it was."""
        ...

    def keep(self, learner: LoraLearner, visit: VisitRows) -> None:
        """Takes note of a visit that was just learned."""
        ...


class Nothing:
    """Keeps nothing."""

    def rows(self) -> tuple[Example, ...]:
        return ()

    def penalty(self) -> Penalty | None:
        return None

    def keep(self, learner: LoraLearner, visit: VisitRows) -> None:
        return None


class Replay:
    """Keeps a few rows of each visit, drawn by a seed.

    Args:
        seed: of the draw.
        share: of a visit's rows, but one at least.
    """

    def __init__(self, seed: int, share: float = REPLAYED) -> None:
        self._rng, self._share = random.Random(f"{seed}:replay"), share
        self._rows: list[Example] = []

    def rows(self) -> tuple[Example, ...]:
        return tuple(self._rows)

    def penalty(self) -> Penalty | None:
        return None

    def keep(self, learner: LoraLearner, visit: VisitRows) -> None:
        count = max(1, round(self._share * len(visit.rows)))
        self._rows += self._rng.sample(visit.rows, count)


@dataclass(frozen=True)
class Sequential:
    """The arm.

    Attributes:
        memory: makes what it keeps, of the seed.
    """

    name: str
    title: str
    memory: Callable[[int], Memory]
    streams: frozenset[str] = WITH_BORDERS
    kind: ArmKind = "trained"

    def run(self, setting: Setting) -> ArmResult:
        """Trains the one adapter on visit after visit and answers the test rows after each."""
        learner, memory = LoraLearner(setting), self.memory(setting.seed)
        learner.add(ONE, setting.seed)
        visits, stages = visits_of(setting.stream), []
        losses: list[dict[str, Any]] = []
        for visit in visits:
            rows = (*visit.rows, *memory.rows())
            lesson = Lesson(rows, visit.seed(setting.seed), learner.epochs)
            outcome = learner.train(ONE, lesson, penalty=memory.penalty())
            losses.append({"skill": visit.skill, "rows": len(rows), "loss": outcome.best_loss})
            if visit is not visits[-1]:
                memory.keep(learner, visit)
            setting.told(f"visit {visit.number}/{len(visits)}: loss {outcome.best_loss:.3f}")
            if places := setting.asked_after(visit.number):
                gates = _one(len(learner.asked))
                whole = setting.whole_after(visit.number)
                answered = answer_rows(
                    learner.model, learner.asked, gates, only=places, whole=whole
                )
                stages.append(Stage(visit.number, visit.skill, answered))
        told = {"visits": losses}
        return learner.result(self.name, stages, lambda rows: _one(len(rows)), told)


def _one(rows: int) -> Gates:
    return Gates.only(ONE, rows)
