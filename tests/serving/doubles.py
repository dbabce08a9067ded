"""An engine that is none: what the protocol asks, in a thread, with texts to count on.

The double answers a prompt with its own last text, word by word. Some prompts make it misbehave.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dylora_moe.errors import PoolError, PromptLengthError, QueueFullError, UnavailableError
from dylora_moe.lifecycle.names import find_expert
from dylora_moe.records import Event, ExpertVersion, Turn
from dylora_moe.serving.engine.requests import (
    EngineState,
    Finished,
    Logprobs,
    OnEvent,
    Piece,
    Provenance,
    Reason,
    Request,
    TokenLogprob,
)
from dylora_moe.serving.served import Served
from tests.serving.double_pool import DoublePool, expert, skill

if TYPE_CHECKING:
    from dylora_moe.lifecycle.live import LivePool

T = TypeVar("T")

BROKEN = "break down"
"""A prompt that holds this ends with reason `error`."""
SECRET = "/home/secret/weights.safetensors"
"""What the engine says of it, and nobody else may."""
ENDLESS = "never end"
"""A prompt that holds this is answered until its number of tokens is reached."""
LONG = "too long"


@dataclass(eq=False)
class DoubleTicket:
    """A request of the double."""

    request: Request
    on_event: OnEvent
    provenance: Provenance
    words: list[str]
    arrived: float
    cancelled: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    written: int = 0
    first: float | None = None

    def cancel(self) -> None:
        self.cancelled.set()


class DoubleEngine:
    """Answers in a thread, one word of each running request a step.

    Args:
        pool: whose experts there are.
        rows, queue: as of the engine.
        pause: seconds of a step.
    """

    def __init__(
        self, pool: DoublePool, rows: int = 4, queue: int = 64, pause: float = 0.0
    ) -> None:
        self.pool, self.rows, self.queue, self.pause = pool, rows, queue, pause
        self.requests: list[Request] = []
        self.ended: list[tuple[str, Reason]] = []
        self.refuse: Exception | None = None
        self.hung = threading.Event()
        """While it is set, whoever asks waits."""
        self.asked = 0
        self._waiting: deque[DoubleTicket] = deque()
        self._running: list[DoubleTicket] = []
        self._changed, self._stopping = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_event: OnEvent) -> DoubleTicket:
        text = last_text(request)
        self._hang()
        if self.refuse is not None:
            raise self.refuse
        if text.startswith(LONG):
            raise PromptLengthError("the prompt is 999 tokens long and the base's context 256")
        ticket = DoubleTicket(
            request, on_event, self._provenance(request), words_of(text, request), time.monotonic()
        )
        with self._changed:
            if self._stopping:
                raise UnavailableError("it is being stopped")
            # What a step would start at once does not wait.
            if len(self._waiting) + len(self._running) >= self.queue + self.rows:
                raise QueueFullError(f"{self.queue} requests wait, as many as may", 1.5)
            self.requests.append(request)
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def state(self) -> EngineState:
        with self._changed:
            return EngineState(
                len(self._running),
                len(self._waiting),
                self.pool.revision.number,
                ready=not self._stopping,
                message=SECRET if self._stopping else "",
                cached_tokens=sum(each.written for each in self._running),
            )

    def encode(self, prompt: str | Sequence[Turn] | Sequence[int]) -> tuple[int, ...]:
        return tuple(range(len(last_text(Request(prompt)).split())))

    def call(self, work: Callable[[LivePool], T]) -> Future[T]:
        done: Future[T] = Future()
        self._hang()
        done.set_result(work(cast("LivePool", None)))
        return done

    def _hang(self) -> None:
        self.asked += 1
        while self.hung.is_set():
            time.sleep(0.01)

    def drain(self, seconds: float | None = None) -> bool:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(seconds)
        finished = not self._thread.is_alive()
        with self._changed:
            left = [*self._running, *self._waiting]
        for ticket in left:
            ticket.cancel()
        return finished

    def _provenance(self, request: Request) -> Provenance:
        current, choice = self.pool.revision, request.choice
        if choice.expert == "base":
            return Provenance(current.number, "base", None, None, {}, 1.0)
        found = find_expert(current, choice.expert or current.experts[0].alias)
        if choice.version not in (None, *(v.version for v in self._versions(found))):
            raise PoolError(f"{found.alias} has no version {choice.version}")
        version = choice.version or found.version
        routed = choice.expert is None
        return Provenance(
            current.number,
            found.alias,
            found.expert_id,
            version,
            {f"{found.alias}@{version}": 0.97 if routed else 1.0},
            none=0.02 if routed else 0.0,
            routed=routed,
            entropy=0.1 if routed else None,
            novel="strange" in last_text(request) if routed else None,
            seed=request.seed if request.temperature else None,
        )

    def _versions(self, found: ExpertVersion) -> list[ExpertVersion]:
        return self.pool.registry.versions(found.expert_id)

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._waiting and len(self._running) < self.rows:
                    self._running.append(self._waiting.popleft())
                running = list(self._running)
                if not running:
                    if self._stopping:
                        return
                    self._changed.wait(0.05)
                    continue
            if self.pause:
                time.sleep(self.pause)
            for ticket in running:
                self._step(ticket)

    def _step(self, ticket: DoubleTicket) -> None:
        request, seconds = ticket.request, time.monotonic() - ticket.arrived
        if ticket.cancelled.is_set():
            self._end(ticket, "cancelled")
        elif BROKEN in last_text(request):
            self._end(ticket, "error", f"could not read {SECRET}")
        elif request.seconds is not None and seconds > request.seconds:
            self._end(ticket, "deadline")
        elif ticket.written == len(ticket.words):
            ticket.on_event(Piece("", 1))
            ticket.written += 1
            self._end(ticket, "stop")
        else:
            ticket.first = seconds if ticket.first is None else ticket.first
            word = ticket.words[ticket.written]
            shown = () if request.top_logprobs is None else (logprobs(word, request.top_logprobs),)
            ticket.written += 1
            ticket.on_event(Piece(word, 1, shown))
            if ticket.written == request.max_tokens:
                self._end(ticket, "length")

    def _end(self, ticket: DoubleTicket, reason: Reason, message: str = "") -> None:
        with self._changed:
            self._running.remove(ticket)
        self.ended.append((ticket.request.id, reason))
        tokens = len(last_text(ticket.request).split())
        ticket.on_event(
            Finished(
                reason,
                tokens,
                ticket.written,
                ticket.provenance,
                message,
                0.0,
                ticket.first,
                time.monotonic() - ticket.arrived,
            )
        )
        ticket.ended.set()


def last_text(request: Request) -> str:
    """The text that the double goes by."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return prompt
    last = prompt[-1]
    return last.content if isinstance(last, Turn) else " ".join(str(each) for each in prompt)


def words_of(text: str, request: Request) -> list[str]:
    """The words of the answer, cut at the first text that stops it."""
    if ENDLESS in text:
        return ["on "] * (10**6)
    words = [f" {word}" if index else word for index, word in enumerate(text.split())]
    whole = "".join(words)
    cut = min((whole.find(stop) for stop in request.stop if stop in whole), default=len(whole))
    found, length = [], 0
    for word in words:
        found.append(word[: max(0, cut - length)])
        length += len(word)
    return [word for word in found if word]


def logprobs(word: str, top: int) -> Logprobs:
    chosen = TokenLogprob(7, word, -0.25)
    others = (TokenLogprob(8 + i, f"other{i}", float("-inf") if i else -1.5) for i in range(top))
    return Logprobs(chosen, tuple([chosen, *others][:top]))


def served(**options: Any) -> Served:
    """A pool with an engine, both doubles."""
    pool = DoublePool()
    return Served(cast("Any", pool), DoubleEngine(pool, **options), "pool")


def learned(found: Served, alias: str) -> None:
    """As if another process had learned a skill into the pool."""
    registry = cast("DoublePool", found.pool).registry
    now = registry.current()
    registry.told.append(Event("promoted", {}, f"{alias} promoted"))
    number = len(now.experts) + 1
    registry.known.append(
        replace(
            now,
            number=now.number + 1,
            parent=now.number,
            experts=(*now.experts, expert(alias, number, maturity=0.2)),
            skills=(*now.skills, skill(alias, number)),
        )
    )


@contextmanager
def running(found: Served) -> Any:
    """The double for as long as the block lasts."""
    try:
        yield found
    finally:
        found.engine.drain(0.1)
