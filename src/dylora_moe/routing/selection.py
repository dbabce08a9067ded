"""From logits to mixing weights: dense while young, sparse when mature.

Pure functions of tensors, row by row: what one input gets depends on no other input of the batch
and not on whether the model is in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SelectionRule:
    """The numbers of the rule.

    Attributes:
        top_k: experts kept for a sparse input, until annealing lowers it to 1.
        dense_above: a young expert with more probability than this makes its input dense.
        unsure_above: if the second-best expert has more than this, the gate is unsure.
        mix_temperature: flattens the mixture of an unsure sparse input, on top of the gate's own
            temperature; 1 leaves the gate's probabilities.
        progress: of annealing, 0 to 1.
    """

    top_k: int = 2
    dense_above: float = 0.05
    unsure_above: float = 0.05
    mix_temperature: float = 1.0
    progress: float = 0.0

    @property
    def kept(self) -> int:
        """Experts kept for a sparse input of which the gate is sure."""
        return 1 + round((self.top_k - 1) * (1 - self.progress))

    @property
    def sharpening(self) -> float:
        """What annealing divides the temperature of a sure sparse input by."""
        return float(SHARPEST**self.progress)


SHARPEST = 10.0
"""The fully annealed gate is this many times as sharp as the calibrated one."""


def expert_weights(
    skill_logits: Float[Tensor, "*batch n_skills"],
    membership: Float[Tensor, "n_skills n_experts"] | None,
    young: Bool[Tensor, " n_experts"],
    rule: SelectionRule,
) -> tuple[Float[Tensor, "*batch n_experts"], Bool[Tensor, "*batch"]]:
    """Weights that sum to 1 in each row, and True where the row is sparse.

    Args:
        skill_logits: after the gate's temperature, without the row of *no expert*.
        membership: as of `by_expert`.
        young: True for experts that are not mature.

    An input is dense if a young expert holds real mass: then all experts take part with their
    probabilities. Else it is sparse: the best `kept` experts of the sharpened softmax, or, where
    the gate is unsure between them, the best `top_k` of the flattened one.
    """
    given = by_expert(skill_logits.softmax(-1), membership)
    dense = ((given > rule.dense_above) & young).any(-1)
    sharp = by_expert((skill_logits * rule.sharpening).softmax(-1), membership)
    flat = by_expert((skill_logits / rule.mix_temperature).softmax(-1), membership)
    sure, mixed = _keep_best(sharp, rule.kept), _keep_best(flat, rule.top_k)
    second = given.detach().topk(min(2, given.shape[-1]), -1).values[..., -1]
    unsure = second > rule.unsure_above if given.shape[-1] > 1 else torch.zeros_like(dense)
    weights = torch.where(unsure[..., None], mixed, sure)
    return torch.where(dense[..., None], given, weights), ~dense


def by_expert(
    probabilities: Float[Tensor, "*batch n_skills"],
    membership: Float[Tensor, "n_skills n_experts"] | None,
) -> Float[Tensor, "*batch n_experts"]:
    """The skills' probabilities summed over each expert's.

    Args:
        membership: 1 where the skill's inputs go to the expert; None where every skill has its own,
            in the same order, and there is nothing to sum.
    """
    return probabilities if membership is None else probabilities @ membership


def none_score(logits: Float[Tensor, "*batch n_rows"]) -> Float[Tensor, "*batch"]:
    """Log-odds of *no expert* (the first row) against all skills together.

    Taken before the temperature, so that neither learning nor annealing it moves the threshold,
    and as log-odds, since the probability is 0 or 1 to float32 for almost every input.
    """
    return logits[..., 0] - logits[..., 1:].logsumexp(-1)


def _keep_best(
    probabilities: Float[Tensor, "*batch n_experts"], k: int
) -> Float[Tensor, "*batch n_experts"]:
    """The k largest of each row, made to sum to 1; zero elsewhere."""
    if k < probabilities.shape[-1]:
        best = probabilities.detach().topk(k, dim=-1).indices
        mask = torch.zeros_like(probabilities).scatter(-1, best, 1.0)
        probabilities = probabilities * mask
    return probabilities / probabilities.sum(-1, keepdim=True)
