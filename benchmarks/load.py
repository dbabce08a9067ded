"""Clients of a running server, as many at once as asked for, and what they saw.

Knows HTTP and OpenAI's stream; knows no model.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass(frozen=True)
class Question:
    """One request: whom it asks, what, and how long the answer may be."""

    model: str
    prompt: str
    tokens: int


@dataclass
class Seen:
    """One answer.

    Attributes:
        first: seconds to the first piece of text.
        tokens: that the server counted.
        failed: what went wrong; empty where nothing did.
    """

    question: Question
    text: str = ""
    first: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    expert: str = ""
    failed: str = ""


@dataclass
class Load:
    """What all clients saw together."""

    seconds: float = 0.0
    seen: list[Seen] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return sum(one.tokens for one in self.seen) / self.seconds

    @property
    def first(self) -> float:
        """Median seconds to the first piece."""
        return statistics.median(one.first for one in self.seen if not one.failed)

    @property
    def failed(self) -> list[str]:
        return [one.failed for one in self.seen if one.failed]


def load(url: str, questions: Sequence[Question], clients: int) -> Load:
    """Asks all questions, each client one after the other."""
    return asyncio.run(_load(url, questions, clients))


async def _load(url: str, questions: Sequence[Question], clients: int) -> Load:
    found, todo = Load(), iter(questions)
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def work() -> None:
            for question in todo:
                found.seen.append(await ask(client, question))

        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        found.seconds = time.perf_counter() - start
    return found


async def ask(client: httpx.AsyncClient, question: Question) -> Seen:
    """One answer, streamed; what goes wrong is said, not raised."""
    seen, start = Seen(question), time.perf_counter()
    body = {
        "model": question.model,
        "messages": [{"role": "user", "content": question.prompt}],
        "max_tokens": question.tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                seen.failed = f"{response.status_code}: {(await response.aread())[:200]!r}"
                return seen
            async for line in response.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    _take(seen, json.loads(line.removeprefix("data: ")), start)
    except httpx.HTTPError as error:
        seen.failed = repr(error)
    seen.seconds = time.perf_counter() - start
    if not seen.failed and not seen.tokens:
        seen.failed = "the stream ended without its last chunk"
    return seen


def _take(seen: Seen, chunk: dict[str, Any], start: float) -> None:
    if "error" in chunk:
        seen.failed = str(chunk["error"])
    for choice in chunk.get("choices", ()):
        text = choice.get("delta", {}).get("content") or ""
        if text and not seen.text:
            seen.first = time.perf_counter() - start
        seen.text += text
    usage = chunk.get("usage")
    if usage:
        seen.tokens = usage["completion_tokens"]
        seen.expert = ", ".join(str(one["expert"]) for one in usage.get("dylora") or ())


def repeated(prompts: Sequence[str], model: str, tokens: int, count: int) -> list[Question]:
    """So many questions, the prompts in turn."""
    return [Question(model, p, tokens) for p in itertools.islice(itertools.cycle(prompts), count)]
