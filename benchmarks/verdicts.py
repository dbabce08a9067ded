"""Result files as rows with a verdict each, what falls short first.

Reads JSON; measures nothing, prints nothing and loads no model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from pathlib import Path
from typing import Any

from measured import Row

RESULTS = Path(__file__).parent / "results"
_KEPT = {"arms", "work"}
_NEEDED = {"measure", "value", "direction", "must", "aim"}


class Verdict(IntEnum):
    """How a row stands to its goals; in the order in which a person wants to read them."""

    SHORT_OF_MUST = 0
    SHORT_OF_AIM = 1
    NOT_MEASURED = 2
    REACHED = 3
    REPORTED = 4

    @property
    def words(self) -> str:
        return _WORDS[self]


_WORDS = {
    Verdict.SHORT_OF_MUST: "short of must",
    Verdict.SHORT_OF_AIM: "short of aim",
    Verdict.NOT_MEASURED: "not measured",
    Verdict.REACHED: "reached",
    Verdict.REPORTED: "reported",
}


@dataclass(frozen=True, slots=True)
class Result:
    """A result file.

    Attributes:
        path: of the JSON.
        name: the file's path under the results, without its ending.
        rows: its rows.
        raw: all that stands in it.
    """

    path: Path
    name: str
    rows: tuple[Row, ...]
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """A row with its verdict and the result it stands in."""

    row: Row
    verdict: Verdict
    result: Result


def read_results(folder: Path = RESULTS) -> list[Result]:
    """Every JSON file under the folder that holds rows, by name; what a benchmark keeps to go on
    with, in `arms` and `work`, is no result.

    Raises:
        ValueError: a row without the fields of a row, or with others.
    """
    found = []
    for path in sorted(folder.rglob("*.json")):
        if _KEPT & set(path.relative_to(folder).parts[:-1]):
            continue
        raw = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and "rows" in raw:
            name = path.relative_to(folder).with_suffix("").as_posix()
            rows = tuple(_row(one, path) for one in raw["rows"])
            found.append(Result(path, name, rows, raw))
    return found


def judge(row: Row) -> Verdict:
    """The row's verdict; where there is only one goal, it counts for itself alone."""
    if row.must is None and row.aim is None:
        return Verdict.REPORTED
    if row.value is None:
        return Verdict.NOT_MEASURED
    if row.must is not None and _short(row, _decisive(row), row.must):
        return Verdict.SHORT_OF_MUST
    if row.aim is not None and _short(row, row.value, row.aim):
        return Verdict.SHORT_OF_AIM
    return Verdict.REACHED


def entries(results: Sequence[Result]) -> list[Entry]:
    """All rows: what is short of its must, of its aim, the rest; each group the furthest first."""
    found = [Entry(row, judge(row), result) for result in results for row in result.rows]
    return sorted(found, key=lambda one: (one.verdict, -_gap(one)))


def number(value: float | None) -> str:
    """Three digits, as a person writes them."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def spread(row: Row) -> str:
    """The lowest and the highest round, or the ends of the interval."""
    if row.low is None and row.high is None:
        return "-"
    low = "-∞" if row.low is None else number(row.low)
    high = "∞" if row.high is None else number(row.high)
    return low if low == high else f"{low} to {high}"


def goal(row: Row, value: float | None) -> str:
    """A goal with its direction."""
    return "-" if value is None else f"{'≤' if row.direction == 'at most' else '≥'} {value:g}"


def tally(found: Sequence[Entry]) -> str:
    """How many rows stand how, in a sentence."""
    counts = [(v, sum(one.verdict is v for one in found)) for v in Verdict]
    said = ", ".join(f"{count} {verdict.words}" for verdict, count in counts if count)
    return f"{len(found)} figures: {said}." if found else "No figures yet."


def _row(found: Mapping[str, Any], path: Path) -> Row:
    known = {one.name for one in fields(Row)}
    if not _NEEDED <= set(found) <= known:
        raise ValueError(
            f"{path}: a row has {', '.join(found)}; it needs {', '.join(sorted(_NEEDED))} and may "
            f"have {', '.join(sorted(known - _NEEDED))}"
        )
    if found["direction"] not in ("at most", "at least"):
        raise ValueError(f"{path}: direction {found['direction']!r}; use 'at most' or 'at least'")
    return Row(**found)


def _decisive(row: Row) -> float:
    """What decides the must: the value, or the end of its interval that is nearest to failing."""
    assert row.value is not None
    if not row.interval:
        return row.value
    if row.direction == "at most":
        return math.inf if row.high is None else row.high
    return -math.inf if row.low is None else row.low


def _short(row: Row, value: float, wanted: float) -> bool:
    return value > wanted if row.direction == "at most" else value < wanted


def _gap(one: Entry) -> float:
    """How far what decides is on the wrong side of the goal that it is short of, relatively."""
    of_must = one.verdict is Verdict.SHORT_OF_MUST
    wanted = one.row.must if of_must else one.row.aim
    if one.verdict > Verdict.SHORT_OF_AIM or wanted is None or one.row.value is None:
        return 0.0
    return abs((_decisive(one.row) if of_must else one.row.value) - wanted) / max(abs(wanted), 1e-9)
