"""Tells the log what happens to the pool while it is served: experts that come and go, changes of
routing strategy, warnings and errors of whoever learns into it.

Looks every second; changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.concurrency import run_in_threadpool

from dylora_moe.errors import DyLoRAError
from dylora_moe.records import Event, PoolRevision
from dylora_moe.serving.http.logs import log_event
from dylora_moe.serving.served import Served

SECONDS = 1.0
RECENT = 200
"""Events that are read at a look: more than a run writes in a second."""
LEVELS = {"warning": logging.WARNING, "error": logging.ERROR}


class Watcher:
    """Follows a pool's events and the revision that the engine answers by.

    Args:
        served: what is followed.
        seconds: between two looks.
    """

    def __init__(self, served: Served, seconds: float = SECONDS) -> None:
        self._served, self._seconds = served, seconds
        self._revision: PoolRevision | None = None
        self._last: Event | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follows it for as long as the block lasts."""
        await run_in_threadpool(self.begin)
        task = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def begin(self) -> None:
        """Takes what is there for known."""
        pool = self._served.pool
        state = self._served.engine.state()
        # While the pool is loaded, nothing is answered by any revision.
        self._revision = pool.registry.revision(state.revision) if state.ready else None
        self._last = next(iter(pool.registry.events(limit=1)), None)

    def look(self) -> None:
        """Tells what is new since the last look."""
        pool = self._served.pool
        state = self._served.engine.state()
        known = None if self._revision is None else self._revision.number
        if state.ready and state.revision != known:
            found = pool.registry.revision(state.revision)
            if self._revision is not None:
                _tell_change(self._revision, found)
            self._revision = found
        recent = pool.registry.events(limit=RECENT)
        # The last of those that are alike: one transaction may say the same twice.
        alike = [number for number, event in enumerate(recent, 1) if event == self._last]
        for event in recent[max(alike, default=0) :]:
            _tell_event(event)
        self._last = recent[-1] if recent else None

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await run_in_threadpool(self.look)
            except DyLoRAError as error:
                log_event("pool_unreadable", logging.WARNING, message=str(error))


def _tell_change(before: PoolRevision, after: PoolRevision) -> None:
    had = {expert.expert_id: expert for expert in before.experts}
    has = {expert.expert_id: expert for expert in after.experts}
    log_event("picked_up", revision=after.number, before=before.number, note=after.note)
    for expert_id, expert in has.items():
        known = had.get(expert_id)
        told: dict[str, Any] = {
            "expert": expert.alias,
            "expert_id": expert_id,
            "version": expert.version,
        }
        if known is None:
            log_event("expert_created", **told, maturity=round(expert.maturity, 4))
        elif known.version != expert.version:
            log_event("expert_changed", **told, before=known.version)
        elif known.alias != expert.alias:
            log_event("expert_renamed", **told, before=known.alias)
    for expert_id, expert in had.items():
        if expert_id not in has:
            log_event("expert_gone", expert=expert.alias, expert_id=expert_id)


def _tell_event(event: Event) -> None:
    level = LEVELS.get(event.kind, logging.INFO)
    log_event(
        f"pool_{event.kind}", level, message=event.message, run=event.run_id, at=event.created_at
    )
