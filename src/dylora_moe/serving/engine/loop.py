"""What the engine does between two steps, and the step itself.

Knows the pool in memory, the batch, what waits and what is on trial; a thread is only begun to make
screens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from dylora_moe.build.reader import PoolReader
from dylora_moe.errors import DyLoRAError
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.records import PoolRevision
from dylora_moe.serving.engine.batch import Batch, Screen
from dylora_moe.serving.engine.canary import CanaryRule
from dylora_moe.serving.engine.limits import Limits
from dylora_moe.serving.engine.notes import Kind, Note, OnNote
from dylora_moe.serving.engine.prompts import Prompts
from dylora_moe.serving.engine.requests import Reason
from dylora_moe.serving.engine.row import Asked, Row
from dylora_moe.serving.engine.tickets import Waiting
from dylora_moe.serving.engine.trials import Trials
from dylora_moe.serving.engine.versions import Versions
from dylora_moe.text.template import stop_token_id

LOOKS = 0.2
"""Seconds between two looks whether another process moved the pool."""

_PATIENCE = 5.0
"""Seconds until a revision that could not be taken up is tried again."""


ScreenOf = Callable[[LivePool], Callable[[], Screen | None]]
"""Of a pool as it is, what makes its screen, in another thread."""


class Loop:
    """The engine's work, turn by turn; loads the pool.

    Args:
        pool: opened for this alone.
        waiting: what came from other threads.
        limits: how much it takes on.
        canary: how new versions are tried.
        screen_of: what screens prompts, anew for each revision; None: nothing does.
        on_note: told what happens.

    Attributes:
        live: the pool in memory.
        prompts: encodes them, in any thread.
        versions: which adapter is which version.
    """

    def __init__(
        self,
        pool: PoolReader,
        waiting: Waiting,
        limits: Limits,
        canary: CanaryRule | None,
        screen_of: ScreenOf | None,
        on_note: OnNote,
    ) -> None:
        self._pool, self._waiting, self._limits = pool, waiting, limits
        self._screen_of, self._on_note = screen_of, on_note
        self.live = pool.live
        self.prompts = Prompts(self.live, limits)
        self.versions = Versions(self.live, pool.registry, pool.artifacts)
        self._batch = Batch(self.live, self.versions, self._ended)
        self._trials = Trials(self.live, self.versions, canary, on_note)
        self._looked, self._not_before = time.monotonic(), 0.0
        self._coming = self._begin_screen()
        if self._coming is not None:
            # Nobody is answered yet, so nobody waits for it; it is taken up with the first turn.
            self._coming.exception()
        self._note("loaded", f"revision {self.revision.number}", {"revision": self.revision.number})

    @property
    def revision(self) -> PoolRevision:
        """That new requests are answered by."""
        return self.live.revision

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._batch.rows)

    @property
    def cached_tokens(self) -> int:
        """Places of the cache that are taken."""
        return self._batch.cached_tokens

    def turn(self) -> bool:
        """Does what there is to do, a step at most; whether anything was done."""
        self._take_up()
        self._take_screen()
        self._end_overdue()
        worked = self._do_call()
        worked = self._let_in() or worked
        if self._batch.rows:
            self._step()
            worked = True
        return self._try_versions() or worked

    def give_up(self, why: str) -> None:
        """Ends what still runs."""
        self._batch.end_all("error", why)

    def _take_up(self) -> None:
        """Becomes what another process made of the pool."""
        now = time.monotonic()
        if now - self._looked < LOOKS or now < self._not_before:
            return
        self._looked = now
        try:
            if self._pool.registry.current_number() == self.revision.number:
                return
            before = dict(self.live.versions)
            self.live.become(self._pool.registry.current())
        except DyLoRAError as error:
            self._not_before = now + _PATIENCE
            self._note("error", f"goes on with revision {self.revision.number}: {error}", {})
            return
        self.versions.moved()
        self._batch.moved()
        self._trials.moved()
        self._coming = self._begin_screen()
        self._tell_of_change(before, time.monotonic() - now)

    def _tell_of_change(self, before: dict[str, int], seconds: float) -> None:
        now = self.live.versions
        new = [self.live.alias(one) for one in now if one not in before]
        gone = [one for one in before if one not in now]
        number = self.revision.number
        numbers = {"revision": number, "new": new, "gone": gone, "seconds": seconds}
        said = f"revision {number}" + (f", new: {', '.join(new)}" if new else "")
        self._note("revision", said, numbers)

    def _begin_screen(self) -> Future[Screen | None] | None:
        """Begins to make the screen of this revision, beside what goes on: among many skills it
        takes seconds. Until it is there nobody looks; the one before knows less."""
        self._batch.screen = None
        if self._screen_of is None:
            return None
        coming: Future[Screen | None] = Future()
        made = (coming, self._screen_of(self.live))
        threading.Thread(target=_fulfil, args=made, name="screen", daemon=True).start()
        return coming

    def _take_screen(self) -> None:
        coming = self._coming
        if coming is None or not coming.done():
            return
        self._coming = None
        try:
            self._batch.screen = coming.result()
        except Exception as error:
            number = self.revision.number
            self._note("error", f"prompts are not screened at revision {number}: {error!r}", {})

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for asked in self._waiting.overdue(now):
            asked.end(asked.overdue(now) or "cancelled")
        for row in list(self._batch.rows):
            reason = row.asked.overdue(now)
            if reason is not None:
                self._batch.end(row, reason)

    def _do_call(self) -> bool:
        """One thing that others need the model for: between two of them answers go on."""
        call = self._waiting.next_call()
        if call is None:
            return False
        work, future = call
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work(self.live))
            except BaseException as error:
                # Raised again where the result is asked for.
                future.set_exception(error)
            # It may have moved experts in and out.
            self._batch.moved()
        return True

    def _let_in(self) -> bool:
        chosen: list[Asked] = []
        while (asked := self._waiting.first()) is not None and self._fits(chosen, asked):
            chosen.append(self._waiting.take())
        if chosen:
            self._join(chosen)
        return bool(chosen)

    def _fits(self, chosen: Sequence[Asked], asked: Asked) -> bool:
        limits, running = self._limits, [row.asked for row in self._batch.rows]
        count = len(running) + len(chosen) + 1
        longest = max(one.tokens for one in (*running, *chosen, asked))
        if count > limits.rows or count * longest > max(limits.tokens, asked.tokens):
            return False
        widest = max(len(one.prompt) for one in (*chosen, asked))
        return not chosen or (len(chosen) + 1) * widest <= limits.prompt_tokens

    def _join(self, chosen: Sequence[Asked]) -> None:
        """Begins requests; where that fails, each by itself, so that one harms no other."""
        rows = [row for asked in chosen if (row := self._row(asked)) is not None]
        if not rows:
            return
        try:
            self._batch.join(rows)
        except Exception as error:
            if len(chosen) > 1 and not any(row.begun for row in rows):
                for asked in chosen:
                    self._join([asked])
                return
            self._broken(rows, error)
            return
        for row in rows:
            if row.novel:
                self._tell_of_strange(row)

    def _row(self, asked: Asked) -> Row | None:
        tokenizer = self.live.base.tokenizer
        try:
            return Row(
                asked, tokenizer, stop_token_id(tokenizer), self.live.base.device,
                revision=self.revision.number, versions=self._trials.taken(),
                alias=self.live.alias, router=self.live.router,
            )  # fmt: skip
        except KeyError:
            asked.end("error", f"expert {asked.pinned} left the pool while the request waited")
            return None

    def _step(self) -> None:
        rows = list(self._batch.rows)
        try:
            self._batch.step()
        except Exception as error:
            self._broken(rows, error)
            self._batch.end_all("error", "a step failed")

    def _broken(self, rows: Sequence[Row], error: Exception) -> None:
        """Rows whose pass failed end; the engine goes on without them."""
        self._note("error", f"{len(rows)} requests failed: {error!r}", {"requests": len(rows)})
        if len(rows) == 1:
            # Of several, nobody knows whose fault it was.
            self._count(rows[0], False)
        there = set(self._batch.rows)
        for row in rows:
            if row in there:
                self._batch.end(row, "error", repr(error))
            else:
                self._batch.refuse(row, repr(error))

    def _ended(self, row: Row, reason: Reason) -> None:
        if reason in ("stop", "length"):
            self._count(row, True)

    def _count(self, row: Row, well: bool) -> None:
        if not self._waiting.closed:
            self._trials.count(row.took_part, well)

    def _try_versions(self) -> bool:
        # A server that is being stopped waits for answers, not for these.
        more = not self._waiting.closed and self._trials.work()
        self.versions.release(self._batch.used | self._trials.used())
        return more

    def _tell_of_strange(self, row: Row) -> None:
        request = row.asked.request
        turns = request.turns
        if turns:
            self._on_note(Note("strange", "no skill claims the prompt", {"id": request.id}, turns))

    def _note(self, kind: Kind, message: str, numbers: dict[str, object]) -> None:
        self._on_note(Note(kind, message, numbers))


def _fulfil(future: Future[Screen | None], make: Callable[[], Screen | None]) -> None:
    try:
        future.set_result(make())
    except BaseException as error:
        future.set_exception(error)
