"""What earlier arrivals came to, as far as a later verdict rests on it: read from the events.

Knows events; keeps nothing, so it is the same in every process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dylora_moe.records import Event

_OTHER_EXPERTS = ("created", "imported", "removed", "rolled back", "put back")
"""Actions after which an arrival is compared with other experts than before."""


def last_separability(events: Iterable[Event], detector: str) -> float | None:
    """The separability of the last arrival that this detector judged; None where there is none, or
    where the pool's experts have become others since.

    An arrival counts once it is settled: one that was interrupted and is told again is not measured
    against itself.

    Args:
        events: of the pool, oldest first.
        detector: as the arrivals' events name it.
    """
    last: float | None = None
    told: Mapping[str, Any] = {}
    for event in events:
        numbers = event.numbers
        if event.kind == "arrival":
            told = numbers
            continue
        if event.kind not in ("promoted", "rejected", "waiting"):
            continue
        if event.kind == "promoted" and numbers.get("action") in _OTHER_EXPERTS:
            last = None
        elif told and told.get("arrival") == numbers.get("arrival"):
            measured = told.get("separability")
            if told.get("detector") == detector and measured is not None:
                last = float(measured["value"])
        else:
            continue
        told = {}
    return last
