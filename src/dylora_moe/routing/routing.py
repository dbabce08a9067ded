"""What the gate says of a batch; the facts, without how they came about."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


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
