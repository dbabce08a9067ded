"""The engine as whoever speaks to it sees it.

`http` is written against this; tests put a double in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol, TypeVar

from dylora_moe.records import Turn
from dylora_moe.serving.engine.requests import EngineState, OnEvent, Request

if TYPE_CHECKING:
    from dylora_moe.lifecycle.live import LivePool

T = TypeVar("T")


class Ticket(Protocol):
    """One request on its way."""

    def cancel(self) -> None:
        """Nobody wants it any more: it ends within one step, with reason `cancelled`. From any
        thread; of no effect once it has finished."""
        ...


class Engine(Protocol):
    """Answers requests in a thread of its own; every method may be called from any thread."""

    def submit(self, request: Request, on_event: OnEvent) -> Ticket:
        """Takes a request on.

        Raises:
            QueueFullError: as many wait as may; says after how many seconds to come again.
            UnavailableError: it is not loaded, is being stopped, or broke down.
            PoolError: no such expert or version.
            DataError: a prompt that leaves no room in the context, or is empty.
        """
        ...

    def state(self) -> EngineState:
        """What it is doing."""
        ...

    def encode(self, prompt: str | Sequence[Turn] | Sequence[int]) -> tuple[int, ...]:
        """Token ids of a prompt, made in the caller's thread.

        Raises:
            UnavailableError: as `submit`.
            DataError: as `submit`.
        """
        ...

    def call(self, work: Callable[[LivePool], T]) -> Future[T]:
        """Runs work that needs the model between two steps, in the engine's thread.

        The pool is at the revision that new requests are answered by. The work must leave it as it
        was; requests under way wait for it, so it should be short. Between two of them every row
        gets a token.

        Raises:
            UnavailableError: as `submit`.
        """
        ...

    def drain(self, seconds: float | None = None) -> bool:
        """Takes no more requests, finishes those that were taken and stops.

        Args:
            seconds: after which what still runs is ended with reason `error`; None: no limit.

        Returns:
            Whether everything came to its end.
        """
        ...
