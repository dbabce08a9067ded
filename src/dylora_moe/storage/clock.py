"""The time as records carry it: ISO 8601, UTC, to the millisecond, so that text sorts by time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], str]
"""What tells the time; tests hand in one that counts."""


def now() -> str:
    """The current time, e.g. `2025-03-01T12:00:00.123+00:00`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
