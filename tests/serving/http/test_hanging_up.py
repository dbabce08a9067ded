from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from itertools import islice

import httpx
import pytest

from tests.serving import doubles
from tests.serving.http.conftest import Live, eventually

ENDLESS = {"model": "base", "max_tokens": 1000, "prompt": doubles.ENDLESS}


def read_a_little(url: str, body: dict[str, object]) -> None:
    """Reads some lines of a stream, waits a moment for a whole answer, and is gone."""
    with suppress(httpx.ReadTimeout), httpx.stream("POST", url, json=body, timeout=3) as answer:
        next(islice(answer.iter_lines(), 3, None))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_is_gone_stops_its_answers(
    stream: bool, n: int, live: Callable[..., Live]
) -> None:
    server = live(engine={"pause": 0.02})
    read_a_little(f"{server.url}/v1/completions", {**ENDLESS, "stream": stream, "n": n})
    # On a slow machine it may be gone before all were taken on.
    eventually(lambda: 0 < len(server.engine.requests) == len(server.engine.ended) <= n)
    assert {reason for _, reason in server.engine.ended} == {"cancelled"}


def test_what_waits_in_the_queue_is_taken_back_too(live: Callable[..., Live]) -> None:
    server = live(engine={"pause": 0.02, "rows": 1})
    body = {**ENDLESS, "n": 4}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=3)
    eventually(lambda: len(server.engine.ended) == 4)
    answered = httpx.post(f"{server.url}/v1/completions", json={"model": "base", "prompt": "a"})
    assert answered.status_code == 200


def test_who_hangs_up_in_the_middle_of_a_body_leaves_nothing(live: Callable[..., Live]) -> None:
    server = live()
    host, port = server.url.removeprefix("http://").split(":")
    for _ in range(20):
        with socket.create_connection((host, int(port))) as sent:
            sent.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
                b"content-type: application/json\r\ncontent-length: 99\r\n\r\n{"
            )
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert server.engine.requests == []
