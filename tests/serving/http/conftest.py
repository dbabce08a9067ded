"""A server over doubles: in this process without a socket, or on a loopback port."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from dylora_moe.parsing import parse
from dylora_moe.serving.http.app import Stopping, create_app
from dylora_moe.serving.http.server import Server, bound, url_of
from dylora_moe.serving.served import Served
from dylora_moe.serving.settings import ServeSettings
from tests.serving import doubles

KEY = "a-key-that-nobody-guesses"
Json = dict[str, Any]
Ask = Callable[..., httpx.Response]


def settings(**values: Any) -> ServeSettings:
    return parse(ServeSettings, values, "tests")


@pytest.fixture
def found() -> Iterator[Served]:
    """A pool that is served by the double."""
    with doubles.running(doubles.served()) as served:
        yield served


@pytest.fixture
def app(found: Served) -> FastAPI:
    return create_app(found, settings())


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """Without keys, on loopback."""
    with TestClient(app, base_url="http://127.0.0.1:8000") as opened:
        yield opened


@pytest.fixture
def chat(client: TestClient) -> Ask:
    """Asks the pool as a conversation."""

    def ask(text: str = "one two three", **fields: Any) -> httpx.Response:
        body = {"model": "pool", "messages": [{"role": "user", "content": text}], **fields}
        return client.post("/v1/chat/completions", json=body)

    return ask


@pytest.fixture
def complete(client: TestClient) -> Ask:
    """Asks the pool to go on with a text."""

    def ask(prompt: Any = "one two three", **fields: Any) -> httpx.Response:
        return client.post("/v1/completions", json={"model": "pool", "prompt": prompt, **fields})

    return ask


class Live:
    """A server in a thread, on a port of its own.

    Attributes:
        url: where it is.
        served: what it serves.
    """

    def __init__(self, served: Served, settings: ServeSettings, keys: list[str]) -> None:
        self._listening = bound(settings.host, 0)
        stopping = Stopping()
        app = create_app(served, settings, keys, stopping=stopping)
        self.url, self.served = url_of(self._listening), served
        self._ready = threading.Event()
        self._server = Server(app, served.engine, stopping, settings, self._ready.set)
        self._thread = threading.Thread(target=self._server.run, args=([self._listening],))

    def __enter__(self) -> Live:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        self._listening.close()

    @property
    def engine(self) -> doubles.DoubleEngine:
        engine = self.served.engine
        assert isinstance(engine, doubles.DoubleEngine)
        return engine


@pytest.fixture
def live() -> Iterator[Callable[..., Live]]:
    """Makes servers; options of the double come as `engine`, settings by name."""
    with ExitStack() as stack:

        def make(engine: Json | None = None, keys: list[str] | None = None, **values: Any) -> Live:
            served = stack.enter_context(doubles.running(doubles.served(**(engine or {}))))
            return stack.enter_context(Live(served, settings(**values), keys or []))

        yield make


def eventually(law: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for what another thread does."""
    end = time.monotonic() + seconds
    while not law():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def error_of(response: httpx.Response) -> Json:
    """The error of a response, which must have OpenAI's form and nothing else."""
    document = response.json()
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert "\n" not in document["error"]["message"]
    return dict(document["error"])
