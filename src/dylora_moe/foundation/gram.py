"""Inner products of rows with each other; knows nothing of what they are."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def gram(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """`rows @ rows.T`, of which only one block beside the diagonal is computed."""
    half = len(rows) // 2
    upper, lower = rows[:half], rows[half:]
    found = rows.new_empty(len(rows), len(rows))
    torch.mm(upper, upper.T, out=found[:half, :half])
    torch.mm(lower, lower.T, out=found[half:, half:])
    torch.mm(lower, upper.T, out=found[half:, :half])
    found[:half, half:] = found[half:, :half].T
    return found
