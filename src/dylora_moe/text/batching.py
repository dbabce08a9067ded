"""Groups rows into batches with little padding, or packs them without any; makes the tensors.

Knows lengths and encoded rows; nothing of text and models. The grouping works on lengths alone, so
that what it costs can be shown before anything is trained.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dylora_moe.errors import DataError
from dylora_moe.text.template import Encoded

IGNORED = -100
"""Label of a token that is not trained; what cross entropy leaves out."""

MAX_PADDING = 0.1

Batch: TypeAlias = dict[str, Tensor]
"""Tensors of one forward pass.

`input_ids`, `labels`: Int `[batch seq]`; a label equals its token where it is trained and is -100
elsewhere (the model shifts them). `prompt_mask`: Bool `[batch seq]`, what routing pools over.
Padded batches have `attention_mask`: Int `[batch seq]`. Packed ones (batch 1) have
`position_ids` and `segment_ids`: Int `[1 seq]`, and no attention mask, since a mask of ones would
let neighbours see each other.
"""


def length_grouped(
    lengths: Sequence[int],
    *,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    max_padding: float = MAX_PADDING,
) -> list[list[int]]:
    """Batches of rows of like length, in shuffled order.

    Rows are sorted by length, ties in random order, and cut into runs. Where that pads more than
    `max_padding` over all, runs end sooner, so that no batch does.

    Args:
        lengths: tokens of each row.
        batch_size: rows in a batch, at most.
        max_tokens: tokens in a batch with its padding, at most (the longest row times the rows).
        seed: the same seed gives the same batches; another one another order and other neighbours.
        max_padding: share of padding, at most.

    Returns:
        Indices into `lengths`; each index exactly once.

    Raises:
        DataError: neither limit is given or one is below 1, or a row alone exceeds `max_tokens`.
    """
    if batch_size is None and max_tokens is None:
        raise DataError("batches need a limit; give batch_size or max_tokens")
    if min(batch_size or 1, max_tokens or 1) < 1:
        raise DataError("batch_size and max_tokens must be at least 1")
    _refuse_longer(lengths, max_tokens, "max_tokens")
    rng = random.Random(seed)
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], rng.random()))
    rows = batch_size or len(order)
    # The one batch that is not full falls anywhere, not always on the longest rows.
    first = len(order) % rows if order else 0
    batches = _cut(lengths, order, rows, max_tokens, 1.0, first if rng.random() < 0.5 else 0)
    if plan_padding(lengths, batches) > max_padding:
        batches = _cut(lengths, order, rows, max_tokens, max_padding, 0)
    rng.shuffle(batches)
    return batches


def pack(lengths: Sequence[int], capacity: int, seed: int | None = None) -> list[list[int]]:
    """Packs rows into sequences of at most `capacity` tokens: best-fit decreasing (each row, the
    longest first, goes where it leaves the least room; Johnson 1973 proves at most 11/9 of the
    fewest sequences possible, plus 4).

    Args:
        lengths: tokens of each row.
        capacity: tokens of a sequence.
        seed: shuffles the sequences; None keeps the order in which they were opened.

    Returns:
        Indices into `lengths`, ascending within a sequence; each index exactly once.

    Raises:
        DataError: a row is longer than the capacity.
    """
    _refuse_longer(lengths, capacity, "capacity")
    packed: list[list[int]] = []
    room: list[tuple[int, int]] = []  # free tokens and number of each sequence, ascending
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect.bisect_left(room, (lengths[index], -1))
        if place == len(room):
            free, number = capacity, len(packed)
            packed.append([])
        else:
            free, number = room.pop(place)
        packed[number].append(index)
        bisect.insort(room, (free - lengths[index], number))
    for rows in packed:
        rows.sort()
    if seed is not None:
        random.Random(seed).shuffle(packed)
    return packed


def plan_padding(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of padding over all tokens of these batches, each padded to its longest row."""
    real = sum(lengths[index] for batch in batches for index in batch)
    total = sum(max(lengths[index] for index in batch) * len(batch) for batch in batches if batch)
    return 1 - real / total if total else 0.0


def packed_lengths(lengths: Sequence[int], packed: Sequence[Sequence[int]]) -> list[int]:
    """Tokens in each packed sequence."""
    return [sum(lengths[index] for index in rows) for rows in packed]


def padding_fraction(batch: Batch) -> float:
    """Share of a batch's tokens that are padding; 0 for a packed one."""
    mask = batch.get("attention_mask")
    return 0.0 if mask is None else 1 - float(mask.sum()) / mask.numel()


def left_padded(
    prompts: Sequence[Sequence[int]], pad_id: int
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Prompts to be continued, padded on the left to the longest, and 0 on that padding."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    return ids, mask


def collate(encoded: Sequence[Encoded], pad_id: int) -> Batch:
    """One row an example, padded on the right to the longest."""
    shape = (len(encoded), max(len(row) for row in encoded))
    ids: Int[Tensor, "batch seq"] = torch.full(shape, pad_id, dtype=torch.long)
    labels: Int[Tensor, "batch seq"] = torch.full(shape, IGNORED, dtype=torch.long)
    attention: Int[Tensor, "batch seq"] = torch.zeros(shape, dtype=torch.long)
    prompt: Bool[Tensor, "batch seq"] = torch.zeros(shape, dtype=torch.bool)
    for place, row in enumerate(encoded):
        length = len(row)
        ids[place, :length] = torch.tensor(row.input_ids)
        labels[place, :length] = _labels(row)
        attention[place, :length] = 1
        prompt[place, : row.prompt_length] = True
    return {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": attention,
        "prompt_mask": prompt,
    }


def collate_packed(encoded: Sequence[Encoded]) -> Batch:
    """All examples one behind the other in one row; positions begin anew with each."""
    lengths = [len(row) for row in encoded]
    prompt = [position < row.prompt_length for row in encoded for position in range(len(row))]
    segments = torch.repeat_interleave(torch.arange(len(encoded)), torch.tensor(lengths))
    return {
        "input_ids": torch.tensor([token for row in encoded for token in row.input_ids])[None],
        "labels": torch.cat([_labels(row) for row in encoded])[None],
        "prompt_mask": torch.tensor(prompt, dtype=torch.bool)[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "segment_ids": segments[None],
    }


def _labels(row: Encoded) -> Int[Tensor, " seq"]:
    labels = torch.tensor(row.input_ids)
    labels[~torch.tensor(row.trained)] = IGNORED
    # In a packed sequence it would be predicted from the end of the neighbour.
    labels[0] = IGNORED
    return labels


def _cut(
    lengths: Sequence[int],
    order: Sequence[int],
    rows: int,
    max_tokens: int | None,
    max_padding: float,
    first: int,
) -> list[list[int]]:
    """Cuts sorted rows into runs; `first` is the size of the first one, 0 for a full one."""
    batches: list[list[int]] = []
    current: list[int] = []
    real, limit = 0, first or rows
    for index in order:
        longest = lengths[index]  # ascending order: the newest is the longest
        total = longest * (len(current) + 1)
        full = len(current) >= limit or (max_tokens is not None and total > max_tokens)
        if current and (full or 1 - (real + longest) / total > max_padding):
            batches.append(current)
            current, real, limit = [], 0, rows
        current.append(index)
        real += longest
    return [*batches, current] if current else batches


def _refuse_longer(lengths: Sequence[int], limit: int | None, name: str) -> None:
    longest = max(lengths, default=0)
    if min(lengths, default=1) < 1:
        raise DataError("a row without tokens cannot be batched; remove it")
    if limit is not None and longest > limit:
        raise DataError(f"a row of {longest} tokens exceeds {name}={limit}; raise it")
