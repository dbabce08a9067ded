"""The server process: a socket, the application, and how both come to their end.

A first signal takes no more requests, finishes those that run and ends; a second one ends at once.
Knows uvicorn; knows no routes.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from dylora_moe.errors import ConfigError
from dylora_moe.serving.engine.protocol import Engine
from dylora_moe.serving.http.app import Stopping
from dylora_moe.serving.http.connections import Connections
from dylora_moe.serving.http.logs import log_event
from dylora_moe.serving.settings import ServeSettings

SIGNALS = (signal.SIGINT, signal.SIGTERM)
KEEP_ALIVE = 15
"""Seconds that a connection may lie idle between two requests."""
LAST_WORDS = 10
"""Seconds for connections to take what was written for them, once the engine has stopped."""


class Server(uvicorn.Server):
    """One application on one socket.

    Args:
        app: the application.
        engine: is drained at the end.
        stopping: set by the first signal.
        settings: of the server.
        on_started: called once requests are taken in.
        on_stopping: called in a thread of its own when it is told to stop, beside the draining.
        on_killed: called before it ends at once; must neither wait nor take a lock.

    Attributes:
        finished: whether everything that ran came to its end.
    """

    def __init__(
        self,
        app: FastAPI,
        engine: Engine,
        stopping: Stopping,
        settings: ServeSettings,
        on_started: Callable[[], None],
        on_stopping: Callable[[], object] = lambda: None,
        on_killed: Callable[[], object] = lambda: None,
    ) -> None:
        limits = settings.limits
        super().__init__(
            uvicorn.Config(
                app,
                # h11 bounds the headers; the faster parser does not.
                http=Connections(limits.connections, limits.stall_seconds),  # type: ignore[arg-type]
                h11_max_incomplete_event_size=limits.header_bytes,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=LAST_WORDS,
            )
        )
        self.finished = True
        self._engine, self._settings = engine, settings
        self._begun = stopping
        self._on_started, self._on_stopping, self._on_killed = on_started, on_stopping, on_killed

    @property
    def stopping(self) -> bool:
        """Whether a signal has come."""
        return self._begun.begun

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._on_started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Uvicorn raises the signal anew at the end, and the process would die of it.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends in good order; at the second time at once."""
        if self.stopping:
            self._on_killed()
            os._exit(128 + sig)
        self.stop()

    def stop(self) -> None:
        """Takes no more requests, finishes those that run, then ends."""
        self._begun.begun = True
        ending = threading.Thread(target=self._on_stopping, name="dylora-stopping", daemon=True)
        drain = threading.Thread(
            target=self._drain, args=(ending,), name="dylora-drain", daemon=True
        )
        for thread in (ending, drain):
            thread.start()

    def _drain(self, ending: threading.Thread) -> None:
        state = self._engine.state()
        log_event("stopping", running=state.running, waiting=state.waiting)
        self.finished = self._engine.drain(self._settings.drain_seconds)
        # Until then a second signal still ends what is being ended at once.
        ending.join()
        log_event("stopped", finished=self.finished)
        self.should_exit = True


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        ConfigError: the address is unknown or taken.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"cannot serve at {host}, port {port}: {reason}; choose another with --host or --port"
        ) from None


def url_of(listening: socket.socket) -> str:
    """Where clients find it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
