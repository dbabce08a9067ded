"""Values out of JSON that may miss them: an absent, non-numeric or non-finite number is None.

A report is written from logs of older versions and of runs that broke off, so absence is normal
here and is shown as such.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dylora_moe.records import Interval


def as_float(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def as_int(value: object) -> int | None:
    found = as_float(value)
    return None if found is None else round(found)


def as_text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def as_mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def as_floats(value: object) -> dict[str, float]:
    """A mapping of names to finite numbers; the rest is left out."""
    pairs = ((str(key), as_float(item)) for key, item in as_mapping(value).items())
    return {key: number for key, number in pairs if number is not None}


def as_interval(value: object) -> Interval | None:
    """`{value, low, high}`; an end that is missing is the value itself."""
    ends = as_mapping(value)
    middle = as_float(ends.get("value"))
    if middle is None:
        return None
    low, high = as_float(ends.get("low")), as_float(ends.get("high"))
    return Interval(middle, middle if low is None else low, middle if high is None else high)


def as_pairs(value: object) -> tuple[tuple[str, float], ...]:
    """`[[name, number], ...]`, in order."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return ()
    found = []
    for item in value:
        if isinstance(item, Sequence) and not isinstance(item, str) and len(item) == 2:
            number = as_float(item[1])
            if number is not None:
                found.append((str(item[0]), number))
    return tuple(found)
