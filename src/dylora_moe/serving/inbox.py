"""The inbox of a pool that is served: strange prompts come in, clusters of them are looked at.

Features of prompts are taken in the engine's thread, some at a time, and kept; clusters are made
elsewhere. Knows no HTTP.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from torch import Tensor

from dylora_moe.errors import UnavailableError
from dylora_moe.lifecycle.inbox import (
    InboxCluster,
    Known,
    cluster_inbox,
    find_cluster,
    inbox_features,
    newest,
)
from dylora_moe.ports import Inbox
from dylora_moe.records import InboxEntry, Turn
from dylora_moe.serving.engine.protocol import Engine

T = TypeVar("T")

AT_A_TIME = 16
"""Prompts whose features are taken between two steps of the engine."""
PATIENCE = 120.0
"""Seconds that the engine may take for them."""
_END: Final = None


class InboxView:
    """Clusters as they are now.

    Args:
        inbox: of the pool.
        engine: takes the features of prompts.
    """

    def __init__(self, inbox: Inbox, engine: Engine) -> None:
        self._inbox, self._engine = inbox, engine
        self._features: dict[str, Tensor] = {}
        self._lock = threading.Lock()
        self._made: tuple[tuple[int, tuple[InboxEntry, ...]], tuple[InboxCluster, ...]] | None
        self._made = None

    def clusters(self) -> tuple[InboxCluster, ...]:
        """The largest first; waits for the engine, so not for its thread nor for an event loop.

        Raises:
            ArtifactError: a file of the inbox is damaged.
            UnavailableError: the engine is not there.
        """
        entries = newest(self._inbox.entries())
        if not entries:
            return ()
        with self._lock:
            known = _waited(self._engine.call(Known.of))
            key = (known.revision, tuple(entries))
            if self._made is None or self._made[0] != key:
                self._made = (key, cluster_inbox(known, entries, self._features_of(entries)))
            return self._made[1]

    def find(self, name: str) -> InboxCluster:
        """One of them; raises as `clusters`, and PoolError where there is none of that name."""
        return find_cluster(self.clusters(), name)

    def _features_of(self, entries: Sequence[InboxEntry]) -> Tensor:
        keys = {entry.key for entry in entries}
        self._features = {key: each for key, each in self._features.items() if key in keys}
        missing = [entry for entry in entries if entry.key not in self._features]
        for start in range(0, len(missing), AT_A_TIME):
            some = missing[start : start + AT_A_TIME]
            found: Tensor = _waited(
                self._engine.call(lambda live, some=some: inbox_features(live, some))  # type: ignore[misc]
            )
            for entry, row in zip(some, found, strict=True):
                self._features[entry.key] = row
        return torch.stack([self._features[entry.key] for entry in entries])


def _waited(work: Future[T]) -> T:
    try:
        return work.result(PATIENCE)
    except TimeoutError:
        work.cancel()
        raise UnavailableError(
            f"the engine had no time within {PATIENCE:.0f} s; come again later"
        ) from None


@dataclass(frozen=True, slots=True)
class InboxBounds:
    """What is kept.

    Attributes:
        entries: prompts at the most.
        size: bytes of them at the most.
        redact: regular expressions; what they match is never written.
    """

    entries: int = 1000
    size: int = 8 << 20
    redact: tuple[str, ...] = ()


class InboxWriter:
    """Writes prompts down in a thread of its own, so that nobody who has one waits for a disk.

    Args:
        inbox: of the pool.
        bounds: of it.
        on_lost: told why prompts are not kept, from any thread: once until one is kept again.
        most_waiting: prompts that may wait for the disk; more are let go.

    Attributes:
        lost: how many were not kept.
    """

    def __init__(
        self,
        inbox: Inbox,
        bounds: InboxBounds,
        on_lost: Callable[[str], None],
        most_waiting: int = 256,
    ) -> None:
        self._inbox, self._bounds, self._on_lost = inbox, bounds, on_lost
        self._is_losing = False
        self._queue: queue.Queue[tuple[Turn, ...] | None] = queue.Queue(most_waiting)
        self.lost = 0
        self._thread = threading.Thread(target=self._run, name="inbox", daemon=True)
        self._thread.start()

    def offer(self, turns: Sequence[Turn]) -> None:
        """Takes a prompt; neither waits nor raises, from any thread."""
        try:
            self._queue.put_nowait(tuple(turns))
        except queue.Full:
            self._lose(f"{self._queue.maxsize} prompts wait for the disk, as many as may")

    def close(self, seconds: float = 30.0) -> None:
        """Writes what waits, then ends; after so many seconds without it."""
        with suppress(queue.Full):
            self._queue.put(_END, timeout=seconds)
        self._thread.join(seconds)

    def _run(self) -> None:
        bounds = self._bounds
        while (turns := self._queue.get()) is not _END:
            try:
                self._inbox.put(
                    turns, entries=bounds.entries, size=bounds.size, redact=bounds.redact
                )
            except Exception as error:
                # A full disk must not end the server; what it answers matters more.
                self._lose(str(error))
            else:
                self._is_losing = False

    def _lose(self, why: str) -> None:
        self.lost += 1
        if not self._is_losing:
            self._is_losing = True
            self._on_lost(why)
