from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from threading import Thread

import httpx
import pytest
from starlette.testclient import TestClient

from dylora_moe.serving.http.app import create_app
from dylora_moe.serving.http.limits import depth_over
from dylora_moe.serving.served import Served
from tests.serving import doubles
from tests.serving.http.conftest import Live, error_of, eventually, settings

JSON = {"content-type": "application/json"}
SMALL = {"limits": {"body_bytes": 2048, "nesting": 8}}


@pytest.fixture
def small(found: Served) -> TestClient:
    return TestClient(create_app(found, settings(**SMALL)), base_url="http://localhost")


def body(size: int) -> bytes:
    return json.dumps({"model": "base", "prompt": "x" * size}).encode()


def chunks(whole: bytes) -> Iterator[bytes]:
    for start in range(0, len(whole), 500):
        yield whole[start : start + 500]


def test_a_body_that_is_too_large_is_refused(small: TestClient) -> None:
    response = small.post("/v1/completions", content=body(3000), headers=JSON)
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"
    assert small.post("/v1/completions", content=body(1000), headers=JSON).status_code == 200


def test_a_body_that_says_no_length_is_counted_as_it_comes(
    live: Callable[..., Live],
) -> None:
    url = live(**SMALL).url
    response = httpx.post(f"{url}/v1/completions", content=chunks(body(9000)), headers=JSON)
    assert response.status_code == 413
    fitting = httpx.post(f"{url}/v1/completions", content=chunks(body(1000)), headers=JSON)
    assert fitting.status_code == 200


def test_a_body_nested_too_deep_is_refused(small: TestClient) -> None:
    for text in (b"[" * 9, b'{"a":' * 9, b'{"model":"a","prompt":' + b"[" * 9 + b"]" * 9 + b"}"):
        response = small.post("/v1/completions", content=text, headers=JSON)
        assert response.status_code == 400
        assert error_of(response)["code"] == "nesting_too_deep"


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        (b"[[[]]]", True),
        (b"[[], [], {}]", False),
        (b'["[[[", "{{{"]', False),
        (rb'["\"[[[", "\\", [[]]]', True),
        (rb'["\\\"[[["]', False),
        (b'["[[[', False),
        (b"", False),
    ],
)
def test_brackets_count_outside_of_texts(text: bytes, deep: bool) -> None:
    assert depth_over(text, 2) is deep


def test_no_body_is_slow_to_look_at() -> None:
    for text in (b'"' + rb"\"" * 500_000, b"[]" * 500_000, b'"' * 1_000_000):
        begun = time.perf_counter()
        depth_over(text, 32)
        assert time.perf_counter() - begun < 5


def test_a_body_that_does_not_come_is_given_up(live: Callable[..., Live]) -> None:
    server = live(limits={"stall_seconds": 0.2})
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as sent:
        sent.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\ncontent-length: 99\r\n\r\n{"
        )
        assert b"408" in sent.recv(4096).split(b"\r\n")[0]


def connected(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def lives(connection: socket.socket) -> None:
    """It is answered on."""
    connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200")


BODILESS = b"host: localhost\r\ncontent-length: 99\r\n\r\n"


def test_what_anybody_may_ask_for_takes_nobody_s_place(live: Callable[..., Live]) -> None:
    server = live(limits={"requests": 2, "stall_seconds": 20})
    with ExitStack() as stack:
        held = []
        for path in (b"/", b"/page/main.js", b"/version", b"/", b"/health", b"/ready"):
            held.append(stack.enter_context(connected(server.url)))
            held[-1].sendall(b"GET " + path + b" HTTP/1.1\r\n" + BODILESS)
            # The answer does not wait for the body, and nobody waits for it behind the answer.
            head = held[-1].recv(65536)
            assert head.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in head
        assert httpx.get(f"{server.url}/v1/models").status_code == 200
        assert httpx.get(f"{server.url}/").status_code == 200


@pytest.mark.parametrize("said", [b"", b"GET /health HTT", b"GET /health HTTP/1.1\r\nhost: lo"])
def test_a_connection_without_a_whole_head_is_closed(
    said: bytes, live: Callable[..., Live]
) -> None:
    server = live(limits={"stall_seconds": 0.5})
    with connected(server.url) as fresh, connected(server.url) as used:
        fresh.sendall(said)
        lives(used)
        used.sendall(said)
        begun = time.monotonic()
        closed = [fresh] + ([used] if said else [])
        for each in closed:
            # Dribbling keeps it no longer.
            with suppress(OSError):
                each.sendall(b"x" if said else b"")
            with suppress(ConnectionResetError):
                assert each.recv(65536) == b""
        assert time.monotonic() - begun < 10
        if not said:
            # Between two requests it may be longer.
            lives(used)


def test_connections_are_bounded_and_the_idle_make_room(live: Callable[..., Live]) -> None:
    server = live(engine={"pause": 0.05}, limits={"connections": 3})
    asked = {"model": "base", "prompt": doubles.ENDLESS, "max_tokens": 60}
    answers: list[int] = []

    def ask() -> None:
        answers.append(
            httpx.post(f"{server.url}/v1/completions", json=asked, timeout=60).status_code
        )

    thread = Thread(target=ask)
    thread.start()
    eventually(lambda: server.engine.state().running == 1)
    with ExitStack() as stack:
        idle = [stack.enter_context(connected(server.url)) for _ in range(6)]
        # Whoever says what they want is heard.
        assert httpx.get(f"{server.url}/health").status_code == 200
        for each in idle[:4]:
            with suppress(ConnectionResetError):
                assert each.recv(1) == b""
    thread.join()
    assert answers == [200]


def test_headers_are_bounded(live: Callable[..., Live]) -> None:
    url = live(limits={"header_bytes": 2048}).url
    assert httpx.get(f"{url}/health", headers={"x": "y" * 1500}).status_code == 200
    for size in (2050, 5000, 70_000):
        assert httpx.get(f"{url}/health", headers={"x": "y" * size}).status_code in (400, 431)
    long = httpx.get(f"{url}/v1/models/{'y' * 2050}")
    assert (long.status_code, error_of(long)["code"]) == (431, "headers_too_large")


def test_open_requests_are_bounded(live: Callable[..., Live]) -> None:
    server = live(engine={"pause": 0.05}, limits={"requests": 2})
    asked = {"model": "base", "prompt": doubles.ENDLESS, "max_tokens": 100}
    threads = [
        Thread(target=httpx.post, args=(f"{server.url}/v1/completions",),
               kwargs={"json": asked, "timeout": 60})
        for _ in range(2)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    eventually(lambda: server.engine.state().running == 2)
    response = httpx.get(f"{server.url}/v1/models")
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert error_of(response)["code"] == "rate_limit_exceeded"
    for path in ("/health", "/ready", "/metrics"):
        assert httpx.get(f"{server.url}{path}").status_code == 200
    for thread in threads:
        thread.join()
    assert httpx.get(f"{server.url}/v1/models").status_code == 200
