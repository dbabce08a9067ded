"""Work that is begun before its result is needed, in a few background threads.

Knows names and callables; what an expert is and where it is read from is handed in.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")

_WORKERS = 4
"""Hashing and copying let go of the interpreter's lock, so a few threads fill a disk's queue."""


class Prefetcher(Generic[T]):
    """Begins work by name and hands each result, or its error, out once.

    The work must not wait for whoever takes its result. Threads start with the first work. Not
    locked itself: the owner calls it from one thread at a time.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._begun: dict[str, Future[T]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._begun

    @property
    def names(self) -> tuple[str, ...]:
        """What was begun and not taken yet, the oldest first."""
        return tuple(self._begun)

    def begin(self, name: str, work: Callable[[], T]) -> None:
        """Begins the work; nothing where work of that name was begun and not taken."""
        if name in self._begun:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="dylora-prefetch")
        self._begun[name] = self._pool.submit(work)

    def is_done(self, name: str) -> bool:
        """Whether taking it would not wait."""
        return self._begun[name].done()

    def take(self, name: str) -> T:
        """Waits for the result and forgets it; raises what the work raised."""
        return self._begun.pop(name).result()

    def forget(self, name: str) -> None:
        """Nobody will take it: it is not begun if it was not yet, and its error is nobody's."""
        future = self._begun.pop(name, None)
        if future is not None:
            future.cancel()

    def close(self) -> None:
        """Forgets everything and gives the threads back; work may be begun again."""
        for name in self.names:
            self.forget(name)
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None
