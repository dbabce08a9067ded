"""Ten thousand requests that nobody should send: does the server mind?

    dylora serve my-pool &
    python benchmarks/hostile.py http://127.0.0.1:8000 --pid $!

A part is made by schemathesis from the server's own OpenAPI; the others are malformed, oversized,
nested, slow, or hung up halfway, while connections are held open that say nothing or half a head.
After each hundred the server must still answer a plain question. Memory is the resident set of the
process: after a warm-up of mixed requests, after each further thousand, and after the last. Ends
with 1 if a response was 500, a question went unanswered, the server kept a connection that said
nothing, or memory grew by more than `--growth`. A key is read from DYLORA_ADMIN_KEY, else from
DYLORA_API_KEY; with the former jobs are asked for too, so give it a pool that may be changed.
Takes half an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 1e308, "", "x", "\0", "é" * 300, [], [[]], {}, {"a": []}, ["a", 1],
    "../../etc/passwd", "http://169.254.169.254/", [{"type": "image_url"}], "\u202e" * 9,
)  # fmt: skip
RAW = (
    b"", b"{", b"[" * 5000, b'{"a":' * 5000, b"\xff\xfe\x00", b'"\\ud800"', b"NaN", b"null",
    b'{"model": "base", "prompt": "\\ud800"}', b'{"model": "base", "seed": ' + b"9" * 6000 + b"}",
    b'"' + b'\\"' * 50_000,
)  # fmt: skip
PATHS = (
    "/", "/v1", "/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/%00", "/v1/models/" + "a" * 3000,
    "//v1/models", "/metrics/../v1/models", "/%ff", "/openapi.json",
)  # fmt: skip
PATIENCE = 300.0
"""Seconds until a plain question must have been answered."""
MUCH = 64
"""Tokens of the longest answers that are asked for, of which nobody waits for the end."""
QUESTION = {"model": "base", "prompt": "Hello", "max_tokens": 2}
WARM_UP = 500
"""Mixed requests until memory is looked at: pools of threads and of memory have grown by then."""
HELD = 64
"""Connections that say nothing, or half a head."""


@dataclass
class Hostile:
    """A server that is being plagued.

    Attributes:
        seen: how many responses had which status; 0: none came.
        asked: how many requests schemathesis made of which route.
        failed: what should not have been.
    """

    url: str
    key: str
    seen: Counter[int] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    def plague(self, number: int) -> None:
        """Sends one request of some kind; the number decides which."""
        draw = random.Random(number)
        kind: Callable[[random.Random], int] = draw.choice(
            (self.changed, self.changed, self.raw, self.path, self.oversized, self.halfway,
             self.reader_gone)
        )  # fmt: skip
        try:
            status = kind(draw)
        except httpx.TransportError:
            # It was not to be waited for, the queue is long, or the server hung up on what it would
            # not read.
            status = 0
        self.seen[status] += 1
        if status == 500:
            self.failed.append(f"request {number} ({kind.__name__}): 500")

    def changed(self, draw: random.Random) -> int:
        """A request that was right, with some fields changed."""
        chat = draw.random() < 0.5
        body: dict[str, Any] = {"model": "base", "max_tokens": 2}
        body["messages" if chat else "prompt"] = (
            [{"role": "user", "content": "Hello"}] if chat else "Hello"
        )
        names = [*body, "n", "stop", "seed", "temperature", "top_p", "stream", "stream_options",
                 "logprobs", "top_logprobs", "tools", "echo", "logit_bias"]  # fmt: skip
        for name in draw.sample(names, draw.randint(1, 3)):
            body[name] = draw.choice(ODD)
        path = "/v1/chat/completions" if chat else "/v1/completions"
        return self._post(path, json.dumps(body).encode())

    def raw(self, draw: random.Random) -> int:
        """A body that is no request."""
        return self._post("/v1/completions", draw.choice(RAW))

    def path(self, draw: random.Random) -> int:
        """A path or a method that there is not."""
        method = draw.choice(("GET", "PUT", "DELETE", "OPTIONS", "TRACE"))
        target = self.url + draw.choice(PATHS)
        return httpx.request(method, target, headers=self.headers, timeout=60).status_code

    def oversized(self, draw: random.Random) -> int:
        """Too large, told beforehand or not."""
        whole = b'{"prompt": "' + b"x" * (3 << 20) + b'"}'
        pieces = (whole[start : start + 65536] for start in range(0, len(whole), 65536))
        return self._post("/v1/completions", whole if draw.random() < 0.5 else pieces)

    def halfway(self, draw: random.Random) -> int:
        """Hung up in the middle of a head, or of a body."""
        where = urlsplit(self.url)
        key = f"authorization: Bearer {self.key}\r\n" if self.key else ""
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {where.netloc}\r\n{key}"
            "content-type: application/json\r\ncontent-length: 60\r\n\r\n"
        ).encode()
        sent = head + json.dumps(QUESTION).encode()
        with socket.create_connection((str(where.hostname), int(where.port or 80))) as connection:
            connection.sendall(sent[: draw.randrange(len(sent))])
        return 0

    def reader_gone(self, draw: random.Random) -> int:
        """Asks for much and is gone."""
        body = {
            **QUESTION,
            "max_tokens": MUCH,
            "stream": draw.random() < 0.5,
            "n": draw.randint(1, 4),
        }
        return self._post("/v1/completions", json.dumps(body).encode(), timeout=0.05)

    def question(self) -> None:
        """A plain question, which must be answered; a full queue is given some time."""
        until, said = time.monotonic() + PATIENCE, "nothing"
        while time.monotonic() < until:
            try:
                status = self._post("/v1/completions", json.dumps(QUESTION).encode())
            except httpx.TimeoutException:
                continue
            if status == 200:
                return
            said = str(status)
            time.sleep(1)
        self.failed.append(f"a plain question was answered with {said}")

    def hold(self) -> list[socket.socket]:
        """Opens connections and sends nothing, or half a head."""
        where = urlsplit(self.url)
        place = (str(where.hostname), int(where.port or 80))
        held, head = list[socket.socket](), f"GET / HTTP/1.1\r\nhost: {where.netloc}\r\n".encode()
        for number in range(HELD):
            held.append(socket.create_connection(place))
            held[-1].sendall(head[: number * 2 % len(head)])
        return held

    def let_go(self, held: list[socket.socket], since: float, seconds: float) -> None:
        """The server must have closed them within so many seconds of their beginning."""
        kept = 0
        for each in held:
            with each:
                each.settimeout(max(0.01, since + seconds - time.monotonic()))
                try:
                    kept += each.recv(1) != b""
                except TimeoutError:
                    kept += 1
                except OSError:
                    continue
        if kept:
            self.failed.append(f"{kept} connections without a head were open after {seconds:.0f} s")

    def end_jobs(self) -> None:
        """Ends what was asked for on the way."""
        answer = httpx.get(f"{self.url}/v1/jobs", headers=self.headers, timeout=60)
        for job in answer.json().get("data", ()):
            if job["state"] in ("queued", "running"):
                target = f"{self.url}/v1/jobs/{job['id']}"
                httpx.delete(target, headers=self.headers, timeout=60)

    def by_schema(self, examples: int) -> None:
        """Requests that schemathesis makes of the server's own OpenAPI."""
        import schemathesis
        from hypothesis import HealthCheck, Phase, given, settings

        schema = schemathesis.openapi.from_url(f"{self.url}/openapi.json", headers=self.headers)
        operations = [found.ok() for found in schema.get_all_operations()]
        for operation in operations:

            @given(case=operation.as_strategy())
            @settings(
                max_examples=max(1, examples // len(operations)),
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def send(case: Any) -> None:
                status = case.call(headers=self.headers).status_code
                self.seen[status] += 1
                self.asked[f"{case.method} {case.path}"] += 1
                if status == 500:
                    self.failed.append(f"{case.method} {case.path} ({case.body!r:.200}): 500")

            send()

    def _post(self, path: str, body: Any, timeout: float = 60) -> int:
        headers = {**self.headers, "content-type": "application/json"}
        target = self.url + path
        return httpx.post(target, content=body, headers=headers, timeout=timeout).status_code


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", help="of a server on this machine")
    parser.add_argument("--pid", type=int, required=True, help="of its process")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--growth", type=float, default=0.1, help="of memory that is let through")
    parser.add_argument("--stall", type=float, default=60.0, help="seconds for a silent client")
    parser.add_argument("--out", type=Path, help="a JSON file of what was seen")
    options = parser.parse_args()
    key = os.environ.get("DYLORA_ADMIN_KEY") or os.environ.get("DYLORA_API_KEY", "")
    hostile = Hostile(options.url.rstrip("/"), key)
    process, begun = psutil.Process(options.pid), time.monotonic()
    hostile.by_schema(options.requests * 3 // 10)
    hostile.end_jobs()
    held, since = hostile.hold(), time.monotonic()
    mixed = options.requests * 7 // 10
    warm, memory = min(WARM_UP, mixed // 2), list[int]()
    with ThreadPoolExecutor(options.at_once) as threads:
        for start in range(0, mixed, 100):
            list(threads.map(hostile.plague, range(start, min(mixed, start + 100))))
            hostile.question()
            done = start + 100
            if done >= warm + 1000 * len(memory):
                memory.append(process.memory_info().rss)
    hostile.let_go(held, since, options.stall)
    hostile.question()
    first, last = memory[0], process.memory_info().rss
    growth = last / first - 1
    if growth > options.growth:
        hostile.failed.append(f"memory grew by {growth:.1%}")
    document = {
        "requests": sum(hostile.seen.values()),
        "statuses": {str(status): hostile.seen[status] for status in sorted(hostile.seen)},
        "by_schema": dict(sorted(hostile.asked.items())),
        "rss_first": first,
        "rss_each_thousand": memory,
        "growth_each_thousand": [b / a - 1 for a, b in pairwise(memory)],
        "rss_last": last,
        "growth": growth,
        "seconds": time.monotonic() - begun,
        "failed": hostile.failed,
    }
    print(json.dumps(document, indent=2))
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 1 if hostile.failed else 0


if __name__ == "__main__":
    sys.exit(main())
