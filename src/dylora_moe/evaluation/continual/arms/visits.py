"""The stretches and the skills of a stream with their rows, for arms that are told them.

Knows a stream and its truth; trains nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from dylora_moe.evaluation.continual.streams import Stream
from dylora_moe.records import Example

WITH_BORDERS = frozenset({"hard", "blurred", "returning"})
"""Streams that have visits; mixed traffic has none."""


@dataclass(frozen=True)
class VisitRows:
    """A visit as it came: of a blurred stream some rows are its neighbours'.

    Attributes:
        number: counted from 1.
        skill: whose visit it is.
        rows: in their order.
    """

    number: int
    skill: str
    rows: tuple[Example, ...]

    def seed(self, seed: int) -> int:
        """The visit's own, of the run's; of 32 bits, as NumPy takes them."""
        return (seed + self.number) % 2**32


def visits_of(stream: Stream) -> tuple[VisitRows, ...]:
    """Every visit of a stream with borders; none of mixed traffic."""
    rows = [row for batch in stream.batches for row in batch]
    return tuple(
        VisitRows(number, visit.skill, tuple(rows[visit.start : visit.stop]))
        for number, visit in enumerate(stream.truth.visits, 1)
    )


def rows_by_skill(stream: Stream) -> dict[str, tuple[Example, ...]]:
    """All rows of each skill, wherever they came, the skills in order of their first row."""
    found: dict[str, list[Example]] = {}
    rows = [row for batch in stream.batches for row in batch]
    for row, skill in zip(rows, stream.truth.skills, strict=True):
        found.setdefault(skill, []).append(row)
    return {skill: tuple(own) for skill, own in found.items()}


def most_of(stream: Stream, rows: Iterable[Example]) -> str | None:
    """The true skill of most rows, the first of equals; None of no rows."""
    truth = stream.truth.skill_of
    found = Counter(truth[row.key] for row in rows)
    return max(found, key=lambda skill: found[skill], default=None)


def end_of(stream: Stream) -> tuple[int, str]:
    """Visits that were learned at the end, and the last one's skill; 1 and none for mixed traffic,
    which is one visit of nobody."""
    visits = stream.truth.visits
    return (len(visits), visits[-1].skill) if visits else (1, "")
