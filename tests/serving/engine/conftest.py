"""Engines on taught pools, turned by hand: no thread, no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dylora_moe.build.reader import PoolReader
from dylora_moe.serving.engine.engine import BatchingEngine
from dylora_moe.serving.engine.limits import Limits
from dylora_moe.serving.engine.loop import Loop
from dylora_moe.serving.engine.notes import Note
from dylora_moe.serving.engine.requests import Finished, Logprobs, Piece, Request
from dylora_moe.serving.engine.row import Asked
from tests.pool_fixtures import (
    _no_waiting,
    base_folder,
    copy,
    empty,
    empty_folder,
    taught,
    taught_folder,
)

__all__ = ["_no_waiting", "base_folder", "copy", "empty", "empty_folder", "taught", "taught_folder"]


@dataclass
class Heard:
    """What one request was told."""

    pieces: list[Piece] = field(default_factory=list)
    ends: list[Finished] = field(default_factory=list)

    def __call__(self, event: Piece | Finished) -> None:
        assert not self.ends, "told after its end"
        if isinstance(event, Piece):
            self.pieces.append(event)
        else:
            self.ends.append(event)

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def end(self) -> Finished:
        (end,) = self.ends
        return end

    @property
    def logprobs(self) -> list[Logprobs]:
        return [one for piece in self.pieces for one in piece.logprobs]


class Turned(BatchingEngine):
    """An engine whose turns are taken by the test."""

    notes: list[Note]

    @property
    def loop(self) -> Loop:
        assert self._loop is not None
        return self._loop

    def load(self) -> None:
        self._loop = Loop(
            self._pool, self._waiting, self._limits, self._canary, self._screen_of, self._on_note
        )
        self._why_not = ""

    def ask(self, request: Request) -> tuple[Heard, Asked]:
        heard = Heard()
        return heard, self.submit(request, heard)

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.loop.turn()

    def run(self) -> None:
        """Until there is nothing to do."""
        while self.loop.turn():
            pass

    def answers(self, *requests: Request) -> list[Heard]:
        """Asks all at once."""
        heard = [self.ask(request)[0] for request in requests]
        self.run()
        return heard


@pytest.fixture
def turned() -> Iterator[Callable[..., Turned]]:
    """Makes engines on a pool's folder that look for a new revision in every turn."""
    pools: list[PoolReader] = []

    def make(folder: Path, **options: Any) -> Turned:
        pool = PoolReader.open(folder, device="cpu", dtype="fp32")
        pools.append(pool)
        notes: list[Note] = []
        options.setdefault("limits", Limits(rows=4))
        engine = Turned(pool, on_note=notes.append, **options)
        engine.notes = notes
        engine.load()
        return engine

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture(autouse=True)
def _look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dylora_moe.serving.engine.loop.LOOKS", 0.0)
