"""What the gate says of a batch; the facts, without how they came about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Granularity = Literal["sequence", "token"]
"""What one decision is for: a whole row, by its prompt, or each token, by what it follows."""


@dataclass(frozen=True, eq=False)
class Routing:
    """The gate's decision for each input, and the numbers behind it.

    Leading dimensions are those of the features handed in: one batch, or batch and sequence.

    Attributes:
        weights: what the mixture layers multiply with. A row sums to 1, or is all zero where the
            input goes to no expert.
        experts: the expert of each column.
        none: probability of *no expert*.
        probabilities: probability of each expert (the sum over its skills) before anything is
            dropped; with `none` it sums to 1.
        logits: the gate's rows after the learned temperature: first *no expert*, then the skills.
        entropy: of `probabilities` and `none` together, in nats.
        load: mean weight of each expert over the inputs that count (detached).
        sparse: True where only the best experts were kept; False where all took part because one
            of the candidates is young. True for inputs that go to no expert.
    """

    weights: Float[Tensor, "*batch n_experts"]
    experts: tuple[str, ...]
    none: Float[Tensor, "*batch"]
    probabilities: Float[Tensor, "*batch n_experts"]
    logits: Float[Tensor, "*batch n_rows"]
    entropy: Float[Tensor, "*batch"]
    load: Float[Tensor, " n_experts"]
    sparse: Bool[Tensor, "*batch"]

    @property
    def to_none(self) -> Bool[Tensor, "*batch"]:
        """True where the input goes to no expert."""
        return self.weights.detach().sum(-1) == 0

    @property
    def dense_share(self) -> float:
        """Share of the inputs that were routed densely: the strategy, as events log it."""
        dense = ~self.sparse
        return float(dense.float().mean()) if dense.numel() else 0.0

    def masked(self, mask: Bool[Tensor, "*batch"]) -> Routing:
        """With weights of zero where the mask is False, so that padding asks for no expert."""
        return replace(self, weights=torch.where(mask[..., None], self.weights, 0.0))

    def at_the_end(self) -> Routing:
        """The decision at each row's last token, where there is one for each token."""
        return joined([self], lambda parts: parts[0][:, -1].clone())

    def over_tokens(self, mask: Bool[Tensor, "batch seq"]) -> Routing:
        """One row for each row of tokens: the mean of its decisions where the mask is True.

        A row is sparse if all its tokens are, and goes to no expert if all of them do.
        """
        counted = mask.to(self.weights.device)
        share = counted.float() / counted.sum(1, keepdim=True).clamp(min=1)

        def mean(values: Tensor) -> Tensor:
            return torch.einsum("bs,bsn->bn", share, values)

        weights = mean(self.weights)
        return Routing(
            weights=weights,
            experts=self.experts,
            none=(share * self.none).sum(1),
            probabilities=mean(self.probabilities),
            logits=mean(self.logits),
            entropy=(share * self.entropy).sum(1),
            load=weights.detach().mean(0),
            sparse=(self.sparse | ~counted).all(1),
        )


def joined(routings: Sequence[Routing], combine: Callable[[Sequence[Tensor]], Tensor]) -> Routing:
    """One routing of several by the same router; `load` is the mean of theirs.

    Args:
        routings: at least one, of the same experts.
        combine: how a field's parts become one.
    """
    first = routings[0]
    return Routing(
        weights=combine([one.weights for one in routings]),
        experts=first.experts,
        none=combine([one.none for one in routings]),
        probabilities=combine([one.probabilities for one in routings]),
        logits=combine([one.logits for one in routings]),
        entropy=combine([one.entropy for one in routings]),
        load=torch.stack([one.load for one in routings]).mean(0),
        sparse=combine([one.sparse for one in routings]),
    )


def by_step(steps: Sequence[Routing], rows: Int[Tensor, "sequences steps"]) -> Routing:
    """The decisions along each sequence, `[sequences, steps, ...]`.

    Args:
        steps: what was decided in each step, one decision a row of that step.
        rows: which of a step's rows a sequence went through; -1 behind its end, where the first
            row stands in.
    """
    numbers = torch.arange(rows.shape[1], device=rows.device)

    def pick(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(parts))[numbers, rows.clamp(min=0)]

    return joined(steps[: rows.shape[1]], pick)
