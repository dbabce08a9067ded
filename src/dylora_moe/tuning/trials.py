"""One training of one skill, alone: what some settings come to.

Knows the base and rows; the expert is gone afterwards.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dylora_moe.build.recipe import make_recipe
from dylora_moe.config import LearnSettings
from dylora_moe.experts.manager import ExpertManager
from dylora_moe.foundation.base import Base
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.training.callbacks import OnProgress
from dylora_moe.training.expert import train_expert
from dylora_moe.training.measure import RowLosses, answer_losses
from dylora_moe.training.reporters import JsonlReporter
from dylora_moe.training.rows import Rows
from dylora_moe.tuning.material import Skill

_EXPERT = "expert_tried"


@dataclass(frozen=True)
class Trained:
    """What came out of one training.

    Attributes:
        loss: of the best weights over the watched rows, nats, token mean.
        judged: each judged row's loss, token mean.
        weights: trained tokens of each judged row.
        exact: whether greedy decoding writes each judged row's last answer to the letter.
        tokens: of all updates.
        seconds: of the training.
        parameters: of the expert.
        operations: floating point operations of all updates; None in a trial that did not count.
    """

    loss: float
    judged: tuple[float, ...]
    weights: tuple[int, ...]
    exact: tuple[bool, ...]
    tokens: int
    seconds: float
    parameters: int
    operations: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Trained:
        lists = {key: tuple(values[key]) for key in ("judged", "weights", "exact")}
        return cls(**{**values, **lists})


class Ground:
    """A base on which one expert after the other is tried.

    Args:
        base: with no adapters on it.
    """

    def __init__(self, base: Base) -> None:
        self._experts = ExpertManager(base.model, base.anatomy, base_name=base.name)
        self._model = DyLoRAMoE(base, DynamicHybridRouter(base.anatomy.d_features), self._experts)

    def train(
        self, skill: Skill, settings: LearnSettings, on_progress: OnProgress | None = None
    ) -> Trained:
        """Trains an expert on a skill with the phases of a new one, without neighbours and gate.

        Args:
            on_progress: as of `train_expert`; what it raises ends the training.

        Raises:
            TrainingError: as of `train_expert`.
        """
        recipe = make_recipe(settings)
        shape = recipe.shape
        # Of the skill alone: what a pool's other experts would add is not in question here.
        phases = [
            replace(phase, collaboration=(0.0, 0.0), train_gate=False)
            for phase in recipe.new_expert
        ]
        self._experts.create_expert(
            _EXPERT, rank=shape.rank, alpha=shape.alpha, dropout=shape.dropout,
            targets=shape.targets, seed=settings.seed,
        )  # fmt: skip
        try:
            with (
                tempfile.TemporaryDirectory() as folder,
                closing(JsonlReporter(Path(folder))) as reporter,
            ):
                outcome = train_expert(
                    self._model,
                    _EXPERT,
                    train=skill.train,
                    evaluation={"own": skill.watched},
                    target="own",
                    phases=phases,
                    folder=Path(folder),
                    reporter=reporter,
                    seed=settings.seed,
                    gradient_checkpointing=settings.gradient_checkpointing,
                    on_progress=on_progress,
                )
            losses = answer_losses(self._model, skill.judged, expert=_EXPERT, openings=True)
            return Trained(
                loss=outcome.best_loss,
                judged=tuple(losses.per_row.tolist()),
                weights=tuple(losses.tokens.tolist()),
                exact=exact_answers(skill.judged, losses),
                tokens=outcome.tokens,
                seconds=outcome.seconds,
                parameters=self._experts.parameter_count(_EXPERT),
                operations=outcome.flops,
            )
        finally:
            self._experts.remove(_EXPERT)


def exact_answers(rows: Rows, losses: RowLosses) -> tuple[bool, ...]:
    """Whether greedy decoding writes each row's last answer to the letter.

    Args:
        losses: of the rows, with their openings.
    """
    return tuple(
        opening == row.input_ids[row.prompt_length :]
        for row, opening in zip(rows.encoded, losses.openings, strict=True)
    )
