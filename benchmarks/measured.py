"""What a benchmark says: rows for the scoreboard, checks, and the samples that rows come from.

Plain numbers; imports no model library, so that reading results takes no time.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["at most", "at least"]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of the scoreboard.

    Attributes:
        measure: what was measured, in words.
        value: median over the rounds; None where it could not be measured here.
        direction: which side of the goal is good.
        must, aim: the goals; None where there is no such goal.
        low, high: the lowest and the highest round.
        note: what a reader has to know.
        interval: whether low and high are a confidence interval: then its end nearest to failing
            decides the must.
    """

    measure: str
    value: float | None
    direction: Direction = "at most"
    must: float | None = None
    aim: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""
    interval: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """A comparison with a reference: the largest difference, and what is let through."""

    what: str
    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.difference <= self.tolerance


class Samples:
    """What the arms measured, round by round.

    Args:
        rounds: for each round, arm by arm, metric by metric: a number or one for each repeat.
    """

    def __init__(self, rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
        self._rounds = rounds

    def values(self, arm: str, metric: str = "seconds") -> list[float]:
        """The arm's median in each round."""
        return [middle(one[arm][metric]) for one in self._rounds if metric in one.get(arm, {})]

    def median(self, arm: str, metric: str = "seconds") -> float:
        return statistics.median(self.values(arm, metric))

    def ratio(
        self,
        ours: str,
        theirs: str,
        measure: str,
        *,
        metric: str = "seconds",
        **goals: Any,
    ) -> Row:
        """A row: ours over theirs, taken round by round, since a round's arms ran side by side.

        `goals` are `row`'s: must, aim, direction, note.
        """
        pairs = zip(self.values(ours, metric), self.values(theirs, metric), strict=True)
        return row([a / b for a, b in pairs], measure, **goals)

    def row(self, arm: str, measure: str, *, metric: str = "seconds", **goals: Any) -> Row:
        """A row of one arm's metric as it is; `goals` are `row`'s."""
        return row(self.values(arm, metric), measure, **goals)


def row(
    values: Sequence[float],
    measure: str,
    must: float | None = None,
    aim: float | None = None,
    direction: Direction = "at most",
    note: str = "",
) -> Row:
    """The row of one value a round."""
    middle_one = statistics.median(values)
    return Row(measure, middle_one, direction, must, aim, min(values), max(values), note)


def middle(value: float | Sequence[float]) -> float:
    """The median of an arm's repeats, or the number itself."""
    return float(statistics.median(value)) if isinstance(value, list | tuple) else float(value)  # type: ignore[arg-type]
