"""How a server comes to its end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from dylora_moe.serving.http.app import Stopping, create_app
from dylora_moe.serving.http.server import Server
from dylora_moe.serving.served import Served
from tests.serving.http.conftest import eventually, settings


class Ending:
    """What is told of the end."""

    def __init__(self) -> None:
        self.go_on, self.stopped, self.killed = threading.Event(), False, False

    def stop(self) -> None:
        self.go_on.wait(30)
        self.stopped = True

    def kill(self) -> None:
        self.killed = True


@pytest.fixture
def ending() -> Iterator[Ending]:
    made = Ending()
    yield made
    made.go_on.set()


@pytest.fixture
def server(found: Served, ending: Ending) -> Server:
    options = settings()
    return Server(
        create_app(found, options), found.engine, Stopping(), options, lambda: None,
        on_stopping=ending.stop, on_killed=ending.kill,
    )  # fmt: skip


def test_jobs_are_ended_beside_the_draining_and_signals_heard_until_they_have(
    server: Server, ending: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    drained: list[bool] = []
    monkeypatch.setattr(server._engine, "drain", lambda seconds: not drained.append(True))
    server.handle_exit(signal.SIGTERM, None)
    assert server.stopping
    eventually(lambda: bool(drained))
    assert not ending.stopped
    time.sleep(0.2)
    assert not server.should_exit
    ending.go_on.set()
    eventually(lambda: ending.stopped)
    eventually(lambda: server.should_exit)


def test_a_second_signal_ends_the_jobs_before_the_server(
    server: Server, ending: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "_exit", lambda code: codes.append((code, ending.killed)))
    server.stop()
    server.handle_exit(signal.SIGINT, None)
    assert codes == [(128 + signal.SIGINT, True)]
