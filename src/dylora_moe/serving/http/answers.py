"""Answers on their way from the engine's thread to the connection that waits for them.

Knows tickets and events; knows nothing of OpenAI's form.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from dylora_moe.errors import PoolError
from dylora_moe.serving.engine.protocol import Engine, Ticket
from dylora_moe.serving.engine.requests import Finished, Logprobs, Piece, Request
from dylora_moe.serving.engine.tickets import full
from dylora_moe.serving.http.errors import ApiError, internal, unknown_model
from dylora_moe.serving.http.logs import log_event
from dylora_moe.serving.http.metrics import Metrics
from dylora_moe.serving.http.threads import Threads


@dataclass
class Whole:
    """An answer that came to its end."""

    text: str = ""
    logprobs: list[Logprobs] = field(default_factory=list)
    end: Finished | None = None


class Answers:
    """The answers of one HTTP request: begun together, ended together.

    Args:
        engine: that gives them.
        requests: one an answer.
        metrics: told of every step.
        threads: that ask the engine.
        arrived: when they were asked for (`time.monotonic`): their time runs from then.
        queue: requests that may wait; None where only the engine knows.
    """

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[Request],
        metrics: Metrics,
        threads: Threads,
        arrived: float,
        queue: int | None = None,
    ) -> None:
        self.requests = tuple(requests)
        self._engine, self._metrics, self._threads = engine, metrics, threads
        self._arrived, self._queue = arrived, queue
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Piece | Finished]] = asyncio.Queue()
        self._tickets: list[Ticket] = []
        self._lock, self._gone = threading.Lock(), threading.Event()
        self._last = [0.0] * len(requests)

    async def begin(self, model: str) -> None:
        """Asks the engine.

        Args:
            model: what the client called it.

        Raises:
            ApiError: no such model.
            DyLoRAError: as `Engine.submit`.
        """
        state = self._engine.state()
        if self._queue is not None and state.waiting >= self._queue:
            # At once: encoding a prompt that is sent away would hold up the others.
            raise full(state.waiting, state.pace)
        try:
            # In a thread: encoding a long prompt takes longer than the others should wait.
            await self._threads.run(self._submit)
        except PoolError as error:
            self.cancel()
            raise unknown_model(error, model) from None
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Nobody waits for them any more; of no effect on what has finished."""
        with self._lock:
            self._gone.set()
            tickets = list(self._tickets)
        for ticket in tickets:
            ticket.cancel()

    async def events(self) -> AsyncIterator[tuple[int, Piece | Finished]]:
        """What happens, with the answer's number, until all have ended.

        Raises:
            ApiError: one ended otherwise than by its text or its number of tokens.
        """
        left = len(self.requests)
        while left:
            index, event = await self._events.get()
            if isinstance(event, Finished):
                left -= 1
                _check(event, self.requests[index])
            yield index, event

    async def whole(self) -> list[Whole]:
        """All of them, when the last has ended; raises as `events`."""
        found = [Whole() for _ in self.requests]
        async for index, event in self.events():
            if isinstance(event, Finished):
                found[index].end = event
            else:
                found[index].text += event.text
                found[index].logprobs += event.logprobs
        return found

    def _submit(self) -> None:
        for index, request in enumerate(self.requests):
            if self._gone.is_set():
                return
            taken = partial(self._take, index)
            ticket = self._engine.submit(self._in_time(request), taken)
            with self._lock:
                self._tickets.append(ticket)
            # Whoever cancelled them before had not seen this one.
            if self._gone.is_set():
                ticket.cancel()

    def _in_time(self, request: Request) -> Request:
        """The request with the time that it has left."""
        if request.seconds is None:
            return request
        left = request.seconds - (time.monotonic() - self._arrived)
        if left <= 0:
            raise _too_late(request.seconds)
        return replace(request, seconds=left)

    def _take(self, index: int, event: Piece | Finished) -> None:
        """In the engine's thread."""
        now = time.perf_counter()
        if isinstance(event, Finished):
            self._metrics.finished(event)
        elif event.tokens:
            if self._last[index]:
                self._metrics.step(now - self._last[index], event.tokens)
            self._last[index] = now
        # The loop may have ended, and nobody waits any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))


def _too_late(seconds: float) -> ApiError:
    return ApiError(
        504,
        f"the answer was not written within {seconds:g} s; ask for fewer tokens",
        "deadline_exceeded",
        headers={"x-should-retry": "false"},
    )


def _check(end: Finished, request: Request) -> None:
    if end.reason in ("stop", "length"):
        return
    if end.reason == "deadline":
        raise _too_late(request.seconds or 0.0)
    if end.reason == "error":
        log_event("answer_failed", id=request.id, message=end.message)
        raise internal(f"answer {request.id}: {end.message}")
    raise ApiError(503, "the answer was broken off; ask again", "cancelled")
