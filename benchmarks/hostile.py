"""Ten thousand requests that nobody should send: does the server mind?

    dylora serve my-pool &
    python benchmarks/hostile.py http://127.0.0.1:8000 --pid $!

A part is made by schemathesis from the server's own OpenAPI; the others are malformed, oversized,
nested, slow, or hung up halfway. After each hundred the server must still answer a plain question.
Memory is the resident set of the process, after a first thousand as after the last. Ends with 1 if
a response was 500, a question went unanswered or memory grew by more than `--growth`. A key is read
from DYLORA_API_KEY. Takes some minutes.
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
QUESTION = {"model": "base", "prompt": "Hello", "max_tokens": 2}


@dataclass
class Hostile:
    """A server that is being plagued.

    Attributes:
        seen: how many responses had which status; 0: none came.
        failed: what should not have been.
    """

    url: str
    key: str
    seen: Counter[int] = field(default_factory=Counter)
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
        status = kind(draw)
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
        try:
            return self._post("/v1/completions", whole if draw.random() < 0.5 else pieces)
        except httpx.TransportError:
            # The server may hang up before all of it is sent.
            return 0

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
            "max_tokens": 200,
            "stream": draw.random() < 0.5,
            "n": draw.randint(1, 4),
        }
        try:
            return self._post("/v1/completions", json.dumps(body).encode(), timeout=0.05)
        except httpx.TransportError:
            return 0

    def question(self) -> None:
        """A plain question, which must be answered; a full queue is given some time."""
        for _ in range(60):
            status = self._post("/v1/completions", json.dumps(QUESTION).encode())
            if status == 200:
                return
            time.sleep(1)
        self.failed.append(f"a plain question was answered with {status}")

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
    parser.add_argument("--out", type=Path, help="a JSON file of what was seen")
    options = parser.parse_args()
    hostile = Hostile(options.url.rstrip("/"), os.environ.get("DYLORA_API_KEY", ""))
    process, begun = psutil.Process(options.pid), time.monotonic()
    hostile.by_schema(options.requests * 3 // 10)
    first = None
    with ThreadPoolExecutor(options.at_once) as threads:
        for start in range(0, options.requests * 7 // 10, 100):
            list(threads.map(hostile.plague, range(start, start + 100)))
            hostile.question()
            if first is None and sum(hostile.seen.values()) >= min(4000, options.requests // 2):
                first = process.memory_info().rss
    last = process.memory_info().rss
    growth = last / (first or last) - 1
    if growth > options.growth:
        hostile.failed.append(f"memory grew by {growth:.1%}")
    document = {
        "requests": sum(hostile.seen.values()),
        "statuses": {str(status): hostile.seen[status] for status in sorted(hostile.seen)},
        "rss_first": first,
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
