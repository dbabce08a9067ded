"""The two ends between which all learning of a stream lies: nothing learned, and all at once."""

from __future__ import annotations

import random
from dataclasses import dataclass

from dylora_moe.evaluation.continual.answers import answer_rows
from dylora_moe.evaluation.continual.arms.arm import ArmKind, Setting
from dylora_moe.evaluation.continual.arms.lora_learner import Lesson, LoraLearner, sides
from dylora_moe.evaluation.continual.arms.visits import end_of
from dylora_moe.evaluation.continual.results import ArmResult, Stage
from dylora_moe.evaluation.continual.streams import STREAMS
from dylora_moe.experts.gates import Gates

_ONE = "expert_1"


@dataclass(frozen=True)
class BaseAlone:
    """The base without any adapter."""

    name: str = "base"
    title: str = "the base alone"
    streams: frozenset[str] = frozenset(STREAMS)
    kind: ArmKind = "untrained"

    def run(self, setting: Setting) -> ArmResult:
        """Answers the test rows, once: nothing changes over the stream."""
        learner = LoraLearner(setting)
        return _result(self.name, setting, learner, (), {})


@dataclass(frozen=True)
class MultiTask:
    """One LoRA on the rows of all skills mixed, for as many epochs as every arm
    (`LoraLearner.epochs`), so that it is not ahead or behind by training."""

    name: str = "multi-task"
    title: str = "one LoRA on all rows at once, at equal tokens"
    streams: frozenset[str] = frozenset(STREAMS)
    kind: ArmKind = "trained"

    def run(self, setting: Setting) -> ArmResult:
        """Trains on everything and answers the test rows."""
        learner = LoraLearner(setting)
        rows = [row for batch in setting.stream.batches for row in batch]
        # Mixed traffic is mixed already; of other streams the order tells of the skills.
        random.Random(f"{setting.seed}:multi-task").shuffle(rows)
        train, _ = sides(rows, setting.learn.validation_fraction)
        epochs = learner.epochs
        learner.add(_ONE, setting.seed)
        outcome = learner.train(_ONE, Lesson(tuple(rows), setting.seed, epochs))
        setting.told(f"{epochs:.2f} epochs over {len(train)} rows: loss {outcome.best_loss:.3f}")
        return _result(self.name, setting, learner, (_ONE,), {"epochs": epochs})


def _result(
    name: str,
    setting: Setting,
    learner: LoraLearner,
    experts: tuple[str, ...],
    details: dict[str, float],
) -> ArmResult:
    gates = Gates.all_of(experts, len(learner.asked))
    answered = answer_rows(learner.model, learner.asked, gates)
    after, skill = end_of(setting.stream)
    stages = [Stage(after, skill, answered)]
    return learner.result(name, stages, lambda rows: Gates.all_of(experts, len(rows)), details)
