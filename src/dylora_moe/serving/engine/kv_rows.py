"""A KV cache whose rows come and go while the others go on.

All rows share one column that is written next. A row that comes later begins further right: its
prompt's keys are put just before that column, so that nothing that is there moves, and what stands
left of a row is masked as padding is. Positions are in the keys already, so columns mean nothing.

Knows transformers' cache; knows nothing of requests, tokens or experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

_SPARE = 128
"""Columns there is room for beyond those in use, a quarter more where they are many."""


@dataclass
class _Window:
    """Which part of the buffers is in use.

    Attributes:
        begins: the first column of each row.
        start: the first column of any row; all before it is free.
        end: the column that is written next.
    """

    begins: list[int] = field(default_factory=list)
    start: int = 0
    end: int = 0

    @property
    def rows(self) -> int:
        return len(self.begins)


class _RowsLayer(CacheLayerMixin):
    """Keys and values of one layer, `[room for rows, groups, room for columns, d]`."""

    is_sliding = False

    def __init__(self, window: _Window, like: Tensor) -> None:
        super().__init__()
        self._window = window
        shape = (0, like.shape[1], 0, like.shape[3])
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.device, self.is_initialized = like.device, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the buffers are there."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        window, end = self._window, self._window.end + key_states.shape[-2]
        self.keys[: window.rows, :, window.end : end] = key_states
        self.values[: window.rows, :, window.end : end] = value_states
        part = slice(window.start, end)
        return self.keys[: window.rows, :, part], self.values[: window.rows, :, part]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self._window.end - self._window.start

    def get_max_length(self) -> int:
        return -1

    def buffers(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values


class RowsCache(Cache):
    """Keys and values of the rows of a running batch.

    Rows are numbered from 0 without a gap: where one leaves, the last takes its place. The buffers
    follow what is there: at most twice its rows and a quarter more than its columns.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.layers: list[Any] = []
        self._window = _Window()

    @property
    def rows(self) -> int:
        """How many there are."""
        return self._window.rows

    @property
    def columns(self) -> int:
        """From the first column of any row to the last; what each row costs."""
        return self._window.end - self._window.start

    @property
    def bytes(self) -> int:
        """Of the buffers."""
        return sum(one.nbytes for layer in self._parts() for one in layer.buffers())

    def take_in(self, source: Cache, lengths: Sequence[int]) -> None:
        """Adds rows that were read in a pass of their own.

        Args:
            source: their cache, the rows padded on the left to the longest.
            lengths: tokens of each row without its padding.

        Where it raises, memory being full, the rows that were there go on as if nothing had been.
        """
        parts = [(layer.keys, layer.values) for layer in source.layers]
        width, window = max(lengths), self._window
        if not window.rows:
            # Made anew, so that what one long prompt took is given back.
            self.layers = [_RowsLayer(window, keys) for keys, _ in parts]
            window.start = window.end = 0
        rows, columns = self._room
        if window.rows + len(lengths) > rows or max(width, window.end) >= columns:
            self._move(max(width, self.columns), window.rows + len(lengths))
        elif window.end < width:
            self._move(width, window.rows)
        first, last = window.rows, window.rows + len(lengths)
        for layer, (keys, values) in zip(self._parts(), parts, strict=True):
            for buffer, new in zip(layer.buffers(), (keys, values), strict=True):
                # The source may hold more columns than the longest row, of padding alone.
                buffer[first:last, :, window.end - width : window.end] = new[:, :, -width:]
        window.begins += [window.end - length for length in lengths]
        window.start = min(window.begins)

    def leave(self, row: int) -> None:
        """Takes a row out; the last one gets its number."""
        window, last = self._window, self._window.rows - 1
        if row != last:
            used = slice(window.begins[last], window.end)
            for layer in self._parts():
                for buffer in layer.buffers():
                    buffer[row, :, used] = buffer[last, :, used]
            window.begins[row] = window.begins[last]
        window.begins.pop()
        window.start = min(window.begins, default=window.end)

    def before_step(self) -> Bool[Tensor, "rows columns"]:
        """Makes room for one more column and says what of each row is real, it included."""
        window = self._window
        if window.end == self._room[1]:
            self._move(self.columns, window.rows)
        columns = torch.arange(window.start, window.end + 1)
        return columns >= torch.tensor(window.begins)[:, None]

    def after_step(self) -> None:
        """The column that was written counts from now on."""
        self._window.end += 1

    def _parts(self) -> list[_RowsLayer]:
        return [layer for layer in self.layers if isinstance(layer, _RowsLayer)]

    @property
    def _room(self) -> tuple[int, int]:
        """Rows and columns that the buffers hold."""
        shape = self._parts()[0].buffers()[0].shape
        return shape[0], shape[2]

    def _move(self, end: int, rows: int) -> None:
        """Moves what is there so that it ends before this column, with room for so many rows and
        for what is to come. Where memory does not take that, everything is as it was."""
        window, there = self._window, self._room[0]
        while there < rows:
            there = max(1, 2 * there)
        room = end + max(_SPARE, end // 4)
        parts = self._parts()
        # All made before one is put in: rows must not stand at two places in different layers.
        made = [
            tuple(_moved(one, window, there, room, end) for one in layer.buffers())
            for layer in parts
        ]
        for layer, (keys, values) in zip(parts, made, strict=True):
            layer.keys, layer.values = keys, values
        by = end - window.end
        window.begins = [begin + by for begin in window.begins]
        window.start, window.end = window.start + by, end


def _moved(buffer: Tensor, window: _Window, rows: int, room: int, end: int) -> Tensor:
    """A buffer of so many rows and columns whose columns in use end there."""
    used = window.end - window.start
    # Zeros, not whatever was there: a masked NaN is one all the same.
    made = buffer.new_zeros(rows, buffer.shape[1], room, buffer.shape[3])
    kept = buffer[: window.rows, :, window.start : window.end]
    made[: window.rows, :, end - used : end] = kept
    return made
