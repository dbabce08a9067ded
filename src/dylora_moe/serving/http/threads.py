"""Threads for work that waits: each kind has its own, so that one which hangs holds up no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from dylora_moe.errors import UnavailableError

T = TypeVar("T")


class Threads:
    """So many calls at once; the others wait without a thread.

    Args:
        most: calls at once.
    """

    def __init__(self, most: int) -> None:
        self._most = CapacityLimiter(most)

    async def run(self, work: Callable[[], T]) -> T:
        """What the work returns.

        Raises:
            UnavailableError: it waited for the engine for longer than it may.
        """
        try:
            return await to_thread.run_sync(work, limiter=self._most)
        except TimeoutError as error:
            raise UnavailableError("the engine took longer than it may") from error
