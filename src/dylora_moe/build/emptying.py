"""What is learned leaves the inbox: the prompts that somebody confirmed, or that came in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dylora_moe.build.opened import OpenedPool
from dylora_moe.records import Arrival


@contextmanager
def emptying_inbox(opened: OpenedPool, arrivals: Sequence[Arrival]) -> Iterator[None]:
    """After the block, prompts leave the inbox that a skill has learned: of the arrivals, and of
    what had waited and was learned with them; of the earlier arrivals too where a later one failed.
    """
    waited = [row for _, rows in opened.storage.examples.waiting() for row in rows]
    try:
        yield
    finally:
        # By what is stored, and not by what is live: that may be half-way.
        live, revision = opened.loaded, opened.storage.registry.current()
        files = [f for skill in revision.skills for f in (*skill.examples, *skill.validation)]
        stored = live.keys_of(tuple(files))
        rows = [*waited, *(row for arrival in arrivals for row in arrival.examples)]
        opened.storage.inbox.learned([row for row in rows if row.key in stored])
