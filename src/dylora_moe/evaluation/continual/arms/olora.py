"""O-LoRA: a new LoRA for each visit, in a subspace orthogonal to the earlier ones'; all are summed.

Source: Wang et al. (2023), "Orthogonal Subspace Learning for Language Model Continual Learning"
(arXiv 2310.14152), eq. 6 to 8: the earlier LoRAs are frozen and take part in the forward pass; the
loss gets `lambda * sum over i < t of |A_i A_t^T|` (all entries, over all layers), with lambda 0.5,
as the authors' code has it, or, in an arm of its own, of the squared entries, as their eq. 7 has
it, with the same lambda. At inference the deltas are added up, so that no id of a skill is needed.
Borders between the visits are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dylora_moe.evaluation.continual.answers import answer_rows
from dylora_moe.evaluation.continual.arms.arm import ArmKind, Setting
from dylora_moe.evaluation.continual.arms.lora_learner import Lesson, LoraLearner
from dylora_moe.evaluation.continual.arms.visits import WITH_BORDERS, visits_of
from dylora_moe.evaluation.continual.results import ArmResult, Stage
from dylora_moe.experts.gates import Gates
from dylora_moe.training.objective import Penalty

STRENGTH = 0.5
"""Lambda."""

_DOWN = "lora_A"


class Orthogonality:
    """How far an adapter's `A` is from orthogonal to earlier ones'.

    Args:
        earlier: matrices of each earlier adapter, by name; only their `A` are looked at.
        own: of the adapter that learns.
        strength: lambda.
        squared: each product squared, as the paper has it, not its absolute value.
    """

    def __init__(
        self,
        earlier: Sequence[Mapping[str, Tensor]],
        own: Mapping[str, nn.Parameter],
        strength: float = STRENGTH,
        squared: bool = False,
    ) -> None:
        self._own = {name: matrix for name, matrix in own.items() if _DOWN in name}
        # One product a layer, however many there are.
        self._earlier = {
            name: torch.cat([one[name].detach() for one in earlier]) for name in self._own
        }
        self._strength = strength
        self._size = torch.square if squared else torch.abs

    def value(self) -> Tensor:
        """Lambda times the sum of what every pair of rows has in common; zero where all are
        orthogonal."""
        parts = [
            self._size(self._earlier[name] @ matrix.t()).sum() for name, matrix in self._own.items()
        ]
        return self._strength * torch.stack(parts).sum()


@dataclass(frozen=True)
class OLora:
    """The arm."""

    name: str = "o-lora"
    title: str = "O-LoRA: a LoRA for each visit, orthogonal to the earlier, all summed"
    streams: frozenset[str] = WITH_BORDERS
    kind: ArmKind = "trained"
    strength: float = STRENGTH
    squared: bool = False

    def run(self, setting: Setting) -> ArmResult:
        """Trains an adapter for each visit on top of the earlier ones."""
        learner = LoraLearner(setting)
        visits, names, stages = visits_of(setting.stream), list[str](), list[Stage]()
        told: list[dict[str, Any]] = []
        for visit in visits:
            own = f"expert_{visit.number}"
            seed = visit.seed(setting.seed)
            learner.add(own, seed)
            lesson = Lesson(visit.rows, seed, learner.epochs)
            penalty = self._penalty(learner, own, names)
            outcome = learner.train(own, lesson, beside=tuple(names), penalty=penalty)
            names.append(own)
            told.append({"skill": visit.skill, "loss": outcome.best_loss})
            setting.told(f"visit {visit.number}/{len(visits)}: loss {outcome.best_loss:.3f}")
            if places := setting.asked_after(visit.number):
                gates = Gates.all_of(names, len(learner.asked))
                whole = setting.whole_after(visit.number)
                answered = answer_rows(
                    learner.model, learner.asked, gates, only=places, whole=whole
                )
                stages.append(Stage(visit.number, visit.skill, answered))
        details = {"visits": told, "lambda": self.strength, "squared": self.squared}
        return learner.result(
            self.name, stages, lambda rows: Gates.all_of(names, len(rows)), details
        )

    def _penalty(self, learner: LoraLearner, own: str, earlier: Sequence[str]) -> Penalty | None:
        if not earlier:
            return None
        matrices = [learner.experts.parameters_of(name) for name in earlier]
        own_matrices = learner.experts.parameters_of(own)
        found = Orthogonality(matrices, own_matrices, self.strength, self.squared)
        how = f"{self.strength:g}{' squared' * self.squared}"
        return Penalty(f"orthogonality {how} to {len(earlier)}", found.value)
