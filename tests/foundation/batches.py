"""Batches of random rows in the three layouts, without the text room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """An encoded row, as far as the foundation reads one."""

    input_ids: tuple[int, ...]
    prompt_length: int


def rows(lengths: Sequence[int] = (11, 7, 14), seed: int = 0) -> list[Tokens]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Tokens(
            tuple(torch.randint(5, 100, (length,), generator=generator).tolist()),
            max(1, length // 2),
        )
        for length in lengths
    ]


def padded(chosen: Sequence[Tokens], side: str = "right", width: int = 0) -> dict[str, Tensor]:
    width = max(width, *(len(row.input_ids) for row in chosen))
    shape = (len(chosen), width)
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "prompt_mask": torch.zeros(shape, dtype=torch.bool),
    }
    for i, row in enumerate(chosen):
        length = len(row.input_ids)
        start = width - length if side == "left" else 0
        batch["input_ids"][i, start : start + length] = torch.tensor(row.input_ids)
        batch["attention_mask"][i, start : start + length] = 1
        batch["prompt_mask"][i, start : start + row.prompt_length] = True
    return batch


def packed(chosen: Sequence[Tokens]) -> dict[str, Tensor]:
    lengths = [len(row.input_ids) for row in chosen]
    return {
        "input_ids": torch.tensor([[t for row in chosen for t in row.input_ids]]),
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "segment_ids": torch.repeat_interleave(torch.arange(len(chosen)), torch.tensor(lengths))[
            None
        ],
        "prompt_mask": torch.cat(
            [torch.arange(len(row.input_ids)) < row.prompt_length for row in chosen]
        )[None],
    }


def model_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids") if k in batch}
