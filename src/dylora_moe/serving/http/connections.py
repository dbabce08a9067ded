"""Connections: how many there may be, and how long one may say nothing.

The parser waits for a head for as long as it takes, so a connection that sends none, or half of
one, would stay for good. Knows uvicorn's protocol; knows no requests.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connections:
    """The bounds that all connections of a server share.

    Args:
        most: connections at once. Where there are as many, the one that has waited longest without
            a request makes room for a new one; where all are busy, the new one is closed.
        seconds: that a head may take to come, and a client to take the end of what was written.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self.seconds = seconds
        self._most = most
        self._idle: dict[BoundedProtocol, None] = {}
        self._open: set[BoundedProtocol] = set()

    def __call__(self, *args: Any, **options: Any) -> BoundedProtocol:
        """A protocol of a new connection, as uvicorn asks for it."""
        return BoundedProtocol(self, *args, **options)

    def add(self, one: BoundedProtocol) -> None:
        """A new connection, which waits for its first request."""
        self._open.add(one)
        self._idle[one] = None
        if len(self._open) > self._most:
            next(iter(self._idle)).abort()

    def idle(self, one: BoundedProtocol) -> None:
        """It waits for a request."""
        if one in self._open:
            self._idle.setdefault(one)

    def busy(self, one: BoundedProtocol) -> None:
        """It has one."""
        self._idle.pop(one, None)

    def remove(self, one: BoundedProtocol) -> None:
        """It is closed."""
        self._open.discard(one)
        self._idle.pop(one, None)


class BoundedProtocol(H11Protocol):
    """One connection.

    Args:
        bounds: of all of them.
    """

    def __init__(self, bounds: Connections, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._bounds = bounds
        self._giving_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._give_up_later()
        self._bounds.add(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # The end of the answer may wait for a client that takes nothing.
        if self.transport.is_closing():
            self._give_up_later()
        else:
            self._look(told=False)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._give_up_later()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._bounds.remove(self)
        self._stay()

    def abort(self) -> None:
        """Closes it at once."""
        self._bounds.remove(self)
        self._unset_keepalive_if_required()
        self.transport.abort()

    def _look(self, told: bool = True) -> None:
        """After something came (`told`), or an answer went."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._bounds.busy(self)
            self._stay()
            return
        self._bounds.idle(self)
        # An idle one is closed by the parser's own timer, which ends with the first byte of a head.
        if told:
            self._give_up_later()

    def _give_up_later(self) -> None:
        if self._giving_up is None:
            self._giving_up = self.loop.call_later(self._bounds.seconds, self.abort)

    def _stay(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
