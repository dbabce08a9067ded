"""Auxiliary losses of the gate: returned to whoever sums them, never parked.

Knows probabilities and logits; knows no coefficients, which are the caller's. Every loss takes a
mask of the rows that count (padding is False) and is 0 where none does.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def balance_loss(
    probabilities: Float[Tensor, "*batch n_experts"], mask: Bool[Tensor, "*batch"] | None = None
) -> Float[Tensor, ""]:
    """`n * sum_i f_i P_i`: 1 when the experts share the inputs evenly, `n` when one takes all.

    `f_i` is the share of inputs whose likeliest expert is i (no gradient), `P_i` the mean
    probability of i (the gradient's way to the gate). Rows are normalised first, so that an input
    that belongs to no expert weighs on none.

    Source: Fedus, Zoph and Shazeer (2022), "Switch Transformers", eq. 4-6, without the coefficient.
    """
    n = probabilities.shape[-1]
    rows = _rows(probabilities, mask)
    if n == 0 or rows.shape[0] == 0:
        return probabilities.sum() * 0.0
    rows = rows / rows.sum(-1, keepdim=True).clamp_min(1e-9)
    share = torch.nn.functional.one_hot(rows.detach().argmax(-1), n).to(rows.dtype).mean(0)
    return n * (share * rows.mean(0)).sum()


def z_loss(
    logits: Float[Tensor, "*batch n_rows"], mask: Bool[Tensor, "*batch"] | None = None
) -> Float[Tensor, ""]:
    """Mean squared log-partition: keeps the logits small.

    Source: Zoph et al. (2022), "ST-MoE", eq. 5.
    """
    rows = _rows(logits, mask)
    return rows.logsumexp(-1).square().mean() if rows.shape[0] else logits.sum() * 0.0


def entropy_loss(
    probabilities: Float[Tensor, "*batch n_rows"], mask: Bool[Tensor, "*batch"] | None = None
) -> Float[Tensor, ""]:
    """Mean entropy of the rows in nats: with a positive coefficient it makes the gate decide."""
    rows = _rows(probabilities, mask)
    if rows.shape[0] == 0:
        return probabilities.sum() * 0.0
    return entropy(rows).mean()


def entropy(probabilities: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Entropy of each row in nats."""
    # Clamped: at exactly 0 the logarithm's gradient is infinite, and 0 times it is not a number.
    return -(probabilities * probabilities.clamp_min(1e-12).log()).sum(-1)


def _rows(values: Tensor, mask: Tensor | None) -> Tensor:
    """The rows that count, one input each; none where there is no column."""
    if values.shape[-1] == 0:
        return values.new_zeros(0, 1)
    flat = values.reshape(-1, values.shape[-1])
    return flat if mask is None else flat[mask.reshape(-1)]
