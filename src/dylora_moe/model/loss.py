"""The trained positions of a batch, padded or packed, and the means of their losses.

Knows labels; knows nothing of logits and models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORED = -100
"""Label of a token that is not trained."""


@dataclass(frozen=True, eq=False)
class TrainedPositions:
    """Where the next token is a target.

    Attributes:
        mask: positions whose logits are trained: the one before each target.
        targets: the tokens to predict there, in reading order.
        rows: row of the batch, or segment of the packed one, of each target.
        n_rows: how many rows there are.
    """

    mask: Bool[Tensor, "batch seq"]
    targets: Int[Tensor, n]
    rows: Int[Tensor, n]
    n_rows: int


@dataclass(frozen=True, eq=False)
class Loss:
    """Cross entropy in nats, fp32.

    Attributes:
        mean: over all trained tokens, or their sum over the given number of items.
        n_tokens: how many there are.
        row_means: of each row, 0 where it has none; detached.
        row_tokens: of each row.
    """

    mean: Float[Tensor, ""]
    n_tokens: Int[Tensor, ""]
    row_means: Float[Tensor, rows]
    row_tokens: Int[Tensor, rows]


def trained_positions(
    labels: Int[Tensor, "batch seq"], segment_ids: Int[Tensor, "batch seq"] | None = None
) -> TrainedPositions:
    """Shifts labels to the positions that predict them.

    Args:
        labels: the token itself where it is trained, -100 elsewhere.
        segment_ids: of packed rows; a segment's first token is no target, since only its neighbour
            stands before it.
    """
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORED
    if segment_ids is None:
        n_rows = labels.shape[0]
        row_of = torch.arange(n_rows, device=labels.device)[:, None].expand_as(labels)
    else:
        mask[:, :-1] &= segment_ids[:, 1:] == segment_ids[:, :-1]
        n_rows, row_of = int(segment_ids.max()) + 1, segment_ids
    return TrainedPositions(mask, labels.roll(-1, dims=1)[mask], row_of[mask], n_rows)


def summed_up(
    losses: Float[Tensor, " n"],
    positions: TrainedPositions,
    num_items: Tensor | int | None = None,
) -> Loss:
    """The mean over all targets and over each row's.

    Args:
        losses: of the targets, in reading order.
        positions: the targets.
        num_items: trained tokens of the whole accumulated step, as HF's Trainer hands them in;
            the sum is divided by it instead of by this batch's own count.
    """
    tokens = torch.bincount(positions.rows, minlength=positions.n_rows)
    sums = torch.zeros(positions.n_rows, device=losses.device)
    sums = sums.index_add(0, positions.rows, losses.detach())
    count = tokens.sum()
    return Loss(
        mean=losses.sum() / (count.clamp(min=1) if num_items is None else num_items),
        n_tokens=count,
        row_means=sums / tokens.clamp(min=1),
        row_tokens=tokens,
    )
