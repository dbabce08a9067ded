"""Keeps the trunk states of a list of rows, computed once and reused by every epoch.

Knows rows of tokens and bytes; knows nothing of labels, of batches' order or of training.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.errors import ConfigError, StorageFullError
from dylora_moe.foundation.base import Base
from dylora_moe.foundation.trunk import TrunkBatch, check_replay, trunk_states

MEMORY_BYTES = 1 << 30
BATCH_TOKENS = 4096


class Row(Protocol):
    """What the cache reads of an encoded row (`text.template.Encoded` is one)."""

    @property
    def input_ids(self) -> Sequence[int]: ...

    @property
    def prompt_length(self) -> int: ...


class TrunkCache:
    """Trunk states of rows, in the base's dtype, in CPU memory or mapped from a file.

    Args:
        base: the frozen base.
        rows: tokens and prompt length of each; at least one token of prompt.
        folder: where states beyond the budget are mapped from. The file has no name while it is
            in use, so nothing is left behind, not even by a process that is killed.
        memory_bytes: the most that is kept in memory.
        batch_tokens: padded tokens of one pass through the trunk.
        per_token: keep every feature block's states, as routing token by token needs them: four
            times the bytes where there are four blocks. Exact, as the running means are made of
            the very states that the full model makes them of.
        progress: called with (rows done, rows in all) after each pass.

    Attributes:
        features: `[n_rows, d_features]`, fp32.
        lengths: tokens of each row.

    Raises:
        BaseModelError: a replay does not give what the whole model gives (`trunk.check_replay`).
        ConfigError: more than `memory_bytes` and no folder.
        StorageFullError: no room in the folder.
        DataError: a row without a prompt token.
    """

    def __init__(
        self,
        base: Base,
        rows: Sequence[Row],
        *,
        folder: Path | None = None,
        memory_bytes: int = MEMORY_BYTES,
        batch_tokens: int = BATCH_TOKENS,
        per_token: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        check_replay(base)
        self.lengths = tuple(len(row.input_ids) for row in rows)
        self.features: Float[Tensor, "n d_features"] = torch.empty(
            len(rows), base.anatomy.d_features
        )
        # The tap's state comes last in a token's numbers, after those of the blocks below it.
        self._width = base.anatomy.d_features if per_token else base.anatomy.d_model
        self.nbytes = sum(self.lengths) * self._width * base.dtype.itemsize
        self._starts = [0] * len(rows)
        self._d_model = base.anatomy.d_model
        self._per_token = per_token
        computed = self._compute(base, rows, batch_tokens, progress)
        if self.nbytes <= memory_bytes:
            self._states = _in_memory(computed, sum(self.lengths), self._width, base.dtype)
        elif folder is None:
            raise ConfigError(
                f"the trunk states of {len(rows)} rows take {self.nbytes >> 20} MiB, more than "
                f"the {memory_bytes >> 20} MiB allowed; give a folder to map them from"
            )
        else:
            self._states = _in_file(computed, sum(self.lengths), self._width, base.dtype, folder)

    def __len__(self) -> int:
        return len(self.lengths)

    def get(
        self, indices: Sequence[int], *, packed: bool = False, width: int | None = None
    ) -> TrunkBatch:
        """The states of some rows, laid out as `text.batching` lays out their tokens.

        Args:
            indices: rows, in the order of the batch.
            packed: one sequence with the rows behind one another, instead of one row each.
            width: length of the padded sequences; that of the longest where None.

        Returns:
            On the CPU. Padding, on the right, is zero: what a padded position holds reaches no
            other position through the attention mask.

        Raises:
            ValueError: `width` is less than the rows need.
        """
        states = [self._row(index) for index in indices]
        features = self.features[list(indices)]
        if packed:
            states = [torch.cat(states)]
        longest = max(state.shape[0] for state in states)
        width = longest if width is None else width
        if width < longest:
            raise ValueError(f"{longest} tokens do not fit into a width of {width}")
        together = self._states.new_zeros(len(states), width, self._width)
        for place, state in zip(together, states, strict=True):
            place[: state.shape[0]] = state
        if not self._per_token:
            return TrunkBatch(together, features)
        below, hidden = together.split([self._width - self._d_model, self._d_model], dim=-1)
        return TrunkBatch(hidden.contiguous(), features, below)

    def row(self, index: int) -> Float[Tensor, "seq d_model"]:
        """One row's states at the tap: a view, not to be written to."""
        return self._row(index)[:, -self._d_model :]

    def _row(self, index: int) -> Float[Tensor, "seq width"]:
        start = self._starts[index]
        return self._states[start : start + self.lengths[index]]

    def _compute(
        self,
        base: Base,
        rows: Sequence[Row],
        batch_tokens: int,
        progress: Callable[[int, int], None] | None,
    ) -> Iterator[Tensor]:
        """States `[seq, width]` row by row in the order they are stored, which it notes."""
        end = done = 0
        for group in _groups(self.lengths, batch_tokens):
            batch = _batch([rows[index] for index in group])
            trunk = trunk_states(base, batch, per_token=self._per_token).to("cpu")
            self.features[group] = trunk.features
            states = trunk.hidden
            if trunk.below is not None:
                states = torch.cat([trunk.below, states], dim=-1)
            for index, state in zip(group, states, strict=True):
                self._starts[index] = end
                end += self.lengths[index]
                yield state[: self.lengths[index]]
            done += len(group)
            if progress is not None:
                progress(done, len(rows))


def _groups(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Rows of like length, longest first, so that memory runs out at once or never."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if group and (len(group) + 1) * lengths[group[0]] > batch_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _batch(rows: Sequence[Row]) -> dict[str, Tensor]:
    width = max(len(row.input_ids) for row in rows)
    positions = torch.arange(width)
    lengths = torch.tensor([len(row.input_ids) for row in rows])
    prompts = torch.tensor([row.prompt_length for row in rows])
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    for place, row in zip(input_ids, rows, strict=True):
        place[: len(row.input_ids)] = torch.tensor(row.input_ids)
    return {
        "input_ids": input_ids,
        "attention_mask": (positions < lengths[:, None]).long(),
        "prompt_mask": positions < prompts[:, None],
    }


def _in_memory(computed: Iterator[Tensor], n_tokens: int, width: int, dtype: torch.dtype) -> Tensor:
    states = torch.empty(n_tokens, width, dtype=dtype)
    end = 0
    for hidden in computed:
        states[end : end + len(hidden)] = hidden
        end += len(hidden)
    return states


def _in_file(
    computed: Iterator[Tensor], n_tokens: int, width: int, dtype: torch.dtype, folder: Path
) -> Tensor:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Written, not mapped and then filled: a full disk is an error here and a crash there.
        with tempfile.NamedTemporaryFile(prefix="trunk-", suffix=".bin", dir=folder) as file:
            for hidden in computed:
                _write(file, hidden.to(dtype))
            file.flush()
            flat = torch.from_file(file.name, shared=False, size=n_tokens * width, dtype=dtype)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(
                f"no room for the trunk states in {os.fspath(folder)}; free some, or train on "
                "fewer rows"
            ) from error
        raise
    return flat.view(n_tokens, width)


def _write(file: BinaryIO | tempfile._TemporaryFileWrapper[bytes], hidden: Tensor) -> None:
    file.write(hidden.contiguous().view(torch.uint8).numpy().data)
