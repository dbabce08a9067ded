"""The engine: one thread that owns the model and answers requests while others come and go.

Between two steps it lets requests in, drops those that nobody wants any more, does what others need
the model for, and takes up what another process learned. Knows the pool; knows no HTTP.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from dylora_moe.build.reader import PoolReader
from dylora_moe.errors import UnavailableError
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.records import BASE_NAME, Turn
from dylora_moe.serving.engine.canary import CanaryRule
from dylora_moe.serving.engine.limits import Limits
from dylora_moe.serving.engine.loop import Loop, ScreenOf
from dylora_moe.serving.engine.notes import Note, OnNote
from dylora_moe.serving.engine.requests import EngineState, OnEvent, Request
from dylora_moe.serving.engine.row import Asked
from dylora_moe.serving.engine.tickets import Waiting

T = TypeVar("T")

USUAL = Limits()

IDLE = 0.2
"""Seconds between two looks for a new revision where there is nothing to do."""

_LOADING = "the pool is being loaded; come again in some seconds"
_STOPPING = "the server is being stopped"


class BatchingEngine:
    """Answers many requests at once, each by experts of its own.

    Made by `open`; implements `protocol.Engine`.

    Args:
        pool: opened for this engine alone.
        limits: how much it takes on.
        canary: how new versions are tried; None: they are in service at once.
        screen_of: what screens prompts, so that strange ones are told of; None: none are.
        on_note: told what happens.
    """

    def __init__(
        self,
        pool: PoolReader,
        *,
        limits: Limits = USUAL,
        canary: CanaryRule | None = None,
        screen_of: ScreenOf | None = None,
        on_note: OnNote | None = None,
    ) -> None:
        self._pool, self._limits = pool, limits
        self._canary, self._screen_of = canary, screen_of
        self._on_note = on_note if on_note is not None else _nothing
        self._waiting = Waiting(limits.waiting)
        self._loop: Loop | None = None
        self._why_not = _LOADING
        self._until: float | None = None
        self._finished = True
        self._thread = threading.Thread(target=self._run, name="dylora-engine", daemon=True)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        dtype: str | None = None,
        expert_memory: int | None = None,
        limits: Limits = USUAL,
        canary: CanaryRule | None = None,
        screen_of: ScreenOf | None = None,
        on_note: OnNote | None = None,
    ) -> BatchingEngine:
        """Opens a pool and begins to load it; requests are taken once that is done.

        Args:
            path: the pool's folder.
            device, dtype, expert_memory: as of `PoolReader.open`.
            limits, canary, screen_of, on_note: as of the class.

        Raises:
            PoolError: no pool there.
        """
        pool = PoolReader.open(path, device=device, dtype=dtype, expert_memory=expert_memory)
        engine = cls(pool, limits=limits, canary=canary, screen_of=screen_of, on_note=on_note)
        engine.start()
        return engine

    def start(self) -> None:
        """Begins to load the pool and to work, in a thread of its own."""
        self._thread.start()

    def wait_until_ready(self, seconds: float | None = None) -> None:
        """Waits for the pool to be loaded.

        Raises:
            UnavailableError: it could not be, or took longer.
        """
        end = None if seconds is None else time.monotonic() + seconds
        while self._loop is None:
            if not self._thread.is_alive() or (end is not None and time.monotonic() > end):
                raise UnavailableError(self._why_not)
            time.sleep(0.01)

    def submit(self, request: Request, on_event: OnEvent) -> Asked:
        """As of `protocol.Engine`."""
        loop = self._ready()
        choice = request.choice
        pinned, version = None, choice.version
        if choice.expert not in (None, BASE_NAME):
            pinned = loop.versions.find(str(choice.expert), version).expert_id
        given = None
        if choice.weights is not None:
            named = [(loop.versions.find(*ref), w) for ref, w in choice.weights.items()]
            given = {(one.expert_id, one.version): weight for one, weight in named}
        prompt = loop.prompts.encode(request.prompt)
        asked = Asked(
            request,
            prompt,
            loop.prompts.room(len(prompt), request.max_tokens),
            pinned=pinned,
            version=version,
            given=given,
            routed=choice.expert is None and given is None,
            on_event=on_event,
        )
        self._waiting.put(asked)
        return asked

    def encode(self, prompt: str | Sequence[Turn] | Sequence[int]) -> tuple[int, ...]:
        """As of `protocol.Engine`."""
        return self._ready().prompts.encode(prompt)

    def call(self, work: Callable[[LivePool], T]) -> Future[T]:
        """As of `protocol.Engine`."""
        self._ready()
        return self._waiting.call(work)

    def state(self) -> EngineState:
        """As of `protocol.Engine`."""
        loop, why = self._loop, self._waiting.closed or self._why_not
        if loop is None:
            return EngineState(0, len(self._waiting), 0, False, why)
        return EngineState(
            running=loop.running,
            waiting=len(self._waiting),
            revision=loop.revision.number,
            ready=not why,
            message=why,
            cached_tokens=loop.cached_tokens,
            pace=self._waiting.pace,
        )

    def drain(self, seconds: float | None = None) -> bool:
        """As of `protocol.Engine`."""
        self._until = None if seconds is None else time.monotonic() + seconds
        self._waiting.close(_STOPPING)
        self._thread.join()
        return self._finished

    def _ready(self) -> Loop:
        if self._loop is None or self._why_not:
            raise UnavailableError(self._why_not)
        return self._loop

    def _run(self) -> None:
        try:
            self._loop = Loop(
                self._pool, self._waiting, self._limits, self._canary, self._screen_of,
                self._on_note,
            )  # fmt: skip
            self._why_not = ""
            self._finished = self._work(self._loop)
        except BaseException as error:
            # Whoever asks is told that it broke down, and the log why.
            self._why_not = "the engine broke down"
            self._finished = False
            self._on_note(Note("error", f"the engine broke down: {error!r}"))
        finally:
            self._waiting.close(self._why_not or _STOPPING)
            if self._loop is not None:
                self._loop.give_up(self._why_not or _STOPPING)
            for asked in self._waiting.rest():
                asked.end("error", self._why_not or _STOPPING)
            self._pool.close()

    def _work(self, loop: Loop) -> bool:
        """Until it is told to stop; whether everything came to its end."""
        while True:
            busy = loop.turn()
            if self._waiting.closed and not busy and not len(self._waiting):
                return True
            if self._until is not None and time.monotonic() > self._until:
                return False
            if not busy:
                self._waiting.wait(IDLE)


def _nothing(note: Note) -> None:
    """Nobody listens."""
