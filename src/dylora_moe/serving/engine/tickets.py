"""Requests that wait, and work that waits for the model: handed over between threads.

Knows a lock; knows nothing of what is done with what it hands over.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from dylora_moe.errors import QueueFullError, UnavailableError
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.serving.engine.row import Asked

T = TypeVar("T")


class Waiting:
    """What came from other threads.

    Args:
        most: requests that may wait.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._asked: deque[Asked] = deque()
        self._calls: deque[tuple[Callable[[LivePool], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._pace = 1.0
        self._closed = ""

    def __len__(self) -> int:
        return len(self._asked)

    @property
    def closed(self) -> str:
        """Why nothing is taken any more; empty while it is."""
        return self._closed

    @property
    def pace(self) -> float:
        """Seconds after which a place becomes free, one at the least."""
        return max(1.0, self._pace)

    def put(self, asked: Asked) -> None:
        """Adds a request.

        Raises:
            QueueFullError: as many wait as may.
            UnavailableError: nothing is taken any more.
        """
        with self._changed:
            self._refuse_closed()
            if len(self._asked) >= self._most:
                raise full(len(self._asked), self.pace)
            self._asked.append(asked)
            self._changed.notify()

    def call(self, work: Callable[[LivePool], T]) -> Future[T]:
        """Adds work that needs the model; UnavailableError where nothing is taken any more."""
        future: Future[T] = Future()
        with self._changed:
            self._refuse_closed()
            self._calls.append((work, future))
            self._changed.notify()
        return future

    def close(self, why: str) -> None:
        """Takes nothing from now on; what waits stays."""
        with self._changed:
            self._closed = self._closed or why
            self._changed.notify()

    def wake(self) -> None:
        """Ends a wait."""
        with self._changed:
            self._changed.notify()

    def wait(self, seconds: float) -> None:
        """Until something comes, so long at most."""
        with self._changed:
            if not self._asked and not self._calls and not self._closed:
                self._changed.wait(seconds)

    def first(self) -> Asked | None:
        """The request that waits longest, which stays."""
        with self._changed:
            return self._asked[0] if self._asked else None

    def take(self) -> Asked:
        """The request that waits longest, which leaves."""
        with self._changed:
            asked = self._asked.popleft()
        # How long a place takes to become free, for those who are sent away.
        self._pace += 0.1 * (time.monotonic() - asked.arrived - self._pace)
        return asked

    def overdue(self, now: float) -> list[Asked]:
        """Takes out requests that are to end though they were not begun."""
        with self._changed:
            ended = [one for one in self._asked if one.overdue(now)]
            if ended:
                self._asked = deque(one for one in self._asked if one not in ended)
        return ended

    def next_call(self) -> tuple[Callable[[LivePool], Any], Future[Any]] | None:
        """The work that waits longest, which leaves; None where there is none."""
        with self._changed:
            return self._calls.popleft() if self._calls else None

    def rest(self) -> list[Asked]:
        """Takes everything that waits; work is told that nobody will do it."""
        with self._changed:
            left = list(self._asked)
            self._asked.clear()
        while (call := self.next_call()) is not None:
            _, future = call
            if future.set_running_or_notify_cancel():
                future.set_exception(UnavailableError(self._closed or "the engine has stopped"))
        return left

    def _refuse_closed(self) -> None:
        if self._closed:
            raise UnavailableError(self._closed)


def full(waiting: int, seconds: float) -> QueueFullError:
    """What whoever comes to a full queue is told: when a place becomes free."""
    said = f"{waiting} requests wait, as many as may; come again in {seconds:.0f} s"
    return QueueFullError(said, seconds)
