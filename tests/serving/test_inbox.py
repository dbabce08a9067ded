"""Prompts for the inbox are written beside the answers, and what is not kept is said."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from dylora_moe.errors import StorageFullError
from dylora_moe.records import Turn
from dylora_moe.serving.inbox import InboxBounds, InboxWriter


class FailingInbox:
    """Fails as it is told to, one outcome a prompt."""

    def __init__(self, outcomes: Sequence[BaseException | None]) -> None:
        self._outcomes, self.kept = list(outcomes), 0
        self.free = threading.Event()

    def put(self, turns: Any, **bounds: Any) -> None:
        self.free.wait(30)
        outcome = self._outcomes.pop(0)
        if outcome is not None:
            raise outcome
        self.kept += 1


def test_what_is_not_kept_is_said_once_until_one_is_kept_again() -> None:
    told: list[str] = []
    outcomes = [StorageFullError("disk full"), ValueError("odd"), None, OSError("rights")]
    inbox = FailingInbox(outcomes)
    inbox.free.set()
    writer = InboxWriter(inbox, InboxBounds(), told.append)  # type: ignore[arg-type]
    for _ in outcomes:
        writer.offer([Turn("user", "x")])
    writer.close()
    assert (told, writer.lost, inbox.kept) == (["disk full", "rights"], 3, 1)


def test_closing_does_not_wait_for_a_disk_that_hangs() -> None:
    told: list[str] = []
    inbox = FailingInbox([None] * 3)
    writer = InboxWriter(inbox, InboxBounds(), told.append, most_waiting=1)  # type: ignore[arg-type]
    for _ in range(3):
        writer.offer([Turn("user", "x")])
    writer.close(0.1)
    assert "wait for the disk" in told[0]
    inbox.free.set()
