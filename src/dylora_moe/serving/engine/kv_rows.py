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

_COLUMNS = 128
"""Columns there is room for at first; doubled when they are full."""


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

    def __init__(self, window: _Window, like: Tensor, rows: int) -> None:
        super().__init__()
        self._window = window
        shape = (rows, like.shape[1], _COLUMNS, like.shape[3])
        # Zeros, not whatever was there: a masked NaN is one all the same.
        self.keys = like.new_zeros(shape)
        self.values = like.new_zeros(shape)
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

    Rows are numbered from 0 without a gap: where one leaves, the last takes its place.

    Args:
        most: rows, at most.
    """

    def __init__(self, most: int) -> None:
        super().__init__(layers=[])
        self.layers: list[Any] = []
        self.most = most
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
        """
        parts = [(layer.keys, layer.values) for layer in source.layers]
        width, window = max(lengths), self._window
        if not self.layers:
            self.layers = [_RowsLayer(window, keys, self.most) for keys, _ in parts]
        if not window.rows:
            window.start = window.end = 0
        self._make_end(width)
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
        if window.end == self._room:
            self._move(self.columns)
        columns = torch.arange(window.start, window.end + 1)
        return columns >= torch.tensor(window.begins)[:, None]

    def after_step(self) -> None:
        """The column that was written counts from now on."""
        self._window.end += 1

    def clear(self) -> None:
        """Takes every row out; the buffers stay."""
        self._window.begins.clear()
        self._window.start = self._window.end = 0

    def _parts(self) -> list[_RowsLayer]:
        return [layer for layer in self.layers if isinstance(layer, _RowsLayer)]

    @property
    def _room(self) -> int:
        return self._parts()[0].buffers()[0].shape[2] if self.layers else 0

    def _make_end(self, width: int) -> None:
        """Has so many columns before the one that is written next."""
        window = self._window
        if window.end < width:
            self._move(width)

    def _move(self, end: int) -> None:
        """Moves what is there so that it ends before this column, with as much room behind it."""
        window, room = self._window, self._room
        while room < 2 * (end + 1):
            room *= 2
        for layer in self._parts():
            layer.keys = _moved(layer.buffers()[0], window, room, end)
            layer.values = _moved(layer.buffers()[1], window, room, end)
        by = end - window.end
        window.begins = [begin + by for begin in window.begins]
        window.start, window.end = window.start + by, end


def _moved(buffer: Tensor, window: _Window, room: int, end: int) -> Tensor:
    """A buffer with so much room whose columns in use end there."""
    used = window.end - window.start
    rows, groups, _, width = buffer.shape
    made = buffer.new_zeros(rows, groups, room, width)
    made[:, :, end - used : end] = buffer[:, :, window.start : window.end]
    return made
