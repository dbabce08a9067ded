"""What the bench has to show: each claim with what it must reach and what it aims at.

Rows in the form of the scoreboard. An interval is over test rows, the same rows for both sides of a
comparison, and over seeds where there are several; its end nearest to failing decides the must, the
point the aim. Knows results; a claim whose arms did not run is left out, and named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dylora_moe.evaluation.continual.measures import ArmFigures
from dylora_moe.evaluation.continual.pairing import ArmResults, compared, neutral_ratio
from dylora_moe.evaluation.continual.presets import TEMPLATED
from dylora_moe.records import Interval

Direction = Literal["at most", "at least"]

OURS, ORACLE, MULTI, BASE = "ours", "oracle-bank", "multi-task", "base"
ORTHOGONAL = ("o-lora", "o-lora-squared")
"""Both forms of its penalty; the better of those that ran is the one to be ahead of."""


@dataclass(frozen=True, slots=True)
class GoalRow:
    """A row of the scoreboard; `interval` says that low and high are an interval, whose end nearest
    to failing decides the must. None is an end that is infinite: at the near one, the must fails.
    """

    measure: str
    value: float | None
    direction: Direction
    must: float | None
    aim: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""
    interval: bool = True

    @property
    def between(self) -> str:
        """Both ends of the interval in words; nothing where there is none."""
        low = "-∞" if self.low is None else f"{self.low:.3g}"
        high = "∞" if self.high is None else f"{self.high:.3g}"
        return f"{low} to {high}" if self.interval else ""


@dataclass(frozen=True)
class Evidence:
    """What claims are read from.

    Attributes:
        results: by stream and arm, one a seed.
        figures: of the same.
        screening: AUROC of single inputs by what they are (`unseen`, `out of scope`); as replayed.
    """

    results: Mapping[tuple[str, str], ArmResults]
    figures: Mapping[tuple[str, str], ArmFigures]
    screening: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """The rows there are, and the measures of those whose arms did not run, with what they lack.

    Attributes:
        rows: with a value each.
        missing: a line for each claim without one.
        absent: the same claims as rows without a value: a scoreboard has to show them too.
    """

    rows: tuple[GoalRow, ...]
    missing: tuple[str, ...]
    absent: tuple[GoalRow, ...] = ()


def table(evidence: Evidence) -> Table:
    """Every claim, on streams without templates first, then with."""
    rows: list[GoalRow] = []
    missing: list[str] = []
    absent: list[GoalRow] = []
    templated = any(stream.endswith(TEMPLATED) for stream, _ in evidence.results)
    plain = any(not stream.endswith(TEMPLATED) for stream, _ in evidence.results)
    for end in [""] * (plain or not templated) + [TEMPLATED] * templated:
        for claim in _CLAIMS:
            measure = claim.measure + (", with templates" if end else "")
            found = claim.read(evidence, end)
            if isinstance(found, str):
                missing.append(f"{measure} ({found})")
                goals = claim.direction, claim.must, claim.aim
                absent.append(GoalRow(measure, None, *goals, note=found, interval=False))
            else:
                rows.append(_row(claim, measure, found, claim.note(evidence, end)))
    return Table(tuple(rows), tuple(missing), tuple(absent))


_Read = Callable[[Evidence, str], Interval | str]
"""A claim's figure, or what there would have to be for it."""


@dataclass(frozen=True)
class _Claim:
    measure: str
    read: _Read
    direction: Direction
    must: float | None
    aim: float | None
    note: Callable[[Evidence, str], str] = lambda _evidence, _end: ""


def _row(claim: _Claim, measure: str, found: Interval, note: str) -> GoalRow:
    low, high = _finite(found.low), _finite(found.high)
    open_end = "the interval has an open end: few rows are right" if None in (low, high) else ""
    return GoalRow(
        measure,
        round(found.value, 6),
        claim.direction,
        claim.must,
        claim.aim,
        low,
        high,
        "; ".join(one for one in (note, open_end) if one),
        interval=found.low != found.high,
    )


def _finite(end: float) -> float | None:
    return round(end, 6) if math.isfinite(end) else None


def _ratio(stream: str, other: str, fallback: str = "") -> _Read:
    """Ours over another arm; that one from the fallback stream, where it has the same rows."""

    def read(evidence: Evidence, end: str) -> Interval | str:
        return _against(evidence, (stream + end, fallback + end), other, "ratio")

    return read


def _best(evidence: Evidence, stream: str, others: Sequence[str]) -> str:
    """Of several arms the most accurate that ran; the first where none did."""
    ran = [other for other in others if (stream, other) in evidence.figures]
    accuracy = {other: evidence.figures[stream, other].accuracy.value for other in ran}
    return max(ran, key=lambda other: accuracy[other], default=others[0])


def _ahead(stream: str, others: Sequence[str]) -> _Read:
    """Points of accuracy between ours and the best of some arms."""

    def read(evidence: Evidence, end: str) -> Interval | str:
        best = _best(evidence, stream + end, others)
        found = _against(evidence, (stream + end,), best, "difference")
        return found if isinstance(found, str) else _scaled(found, 100)

    return read


def _of_several(stream: str, others: Sequence[str]) -> Callable[[Evidence, str], str]:
    """Which of several arms it was, where more than one ran."""

    def note(evidence: Evidence, end: str) -> str:
        ran = [other for other in others if (stream + end, other) in evidence.figures]
        return f"beside {_best(evidence, stream + end, others)}" if len(ran) > 1 else ""

    return note


def _against(
    evidence: Evidence, streams: Sequence[str], other: str, statistic: str
) -> Interval | str:
    ours = evidence.results.get((streams[0], OURS))
    theirs = next(
        (evidence.results[s, other] for s in streams if (s, other) in evidence.results), None
    )
    if ours is None:
        return f"{OURS} on {streams[0]} did not run"
    if theirs is None:
        return f"{other} did not run"
    try:
        return compared(ours, theirs, statistic)
    except ValueError as error:
        return str(error)


def _figure(
    stream: str, name: str, take: Callable[[ArmFigures], Interval | float | None], scale: float = 1
) -> _Read:
    """A figure of ours."""

    def read(evidence: Evidence, end: str) -> Interval | str:
        own = evidence.figures.get((stream + end, OURS))
        if own is None:
            return f"{OURS} on {stream + end} did not run"
        found = take(own)
        if found is None:
            return f"no {name} was measured"
        if not isinstance(found, Interval):
            found = Interval(found, found, found)
        return _scaled(found, scale)

    return read


def _base_change(evidence: Evidence, end: str) -> Interval | str:
    """How far the loss on text of no skill moved, either way, as a share of the base's; paired over
    passages. Without losses row by row, a figure without an interval."""
    own = evidence.results.get(("hard" + end, OURS))
    bare = evidence.results.get(("hard" + end, BASE)) or evidence.results.get(("hard", BASE))
    if own is None or bare is None:
        return f"{OURS if own is None else BASE} on hard{end} did not run"
    try:
        ratio = neutral_ratio(own, bare)
    except ValueError as error:
        return str(error)
    ends = sorted((abs(ratio.low - 1), abs(ratio.high - 1)))
    least = 0.0 if ratio.low <= 1 <= ratio.high else ends[0]
    return Interval(abs(ratio.value - 1), least, ends[1])


def _screened(what: str) -> _Read:
    def read(evidence: Evidence, end: str) -> Interval | str:
        return evidence.screening.get(what + end, "no detector was replayed on such inputs")

    return read


def _grown(figures: ArmFigures) -> float | None:
    """Too few experts are as wrong as too many, and seeds must not make up for each other."""
    return None if figures.experts_off is None else float(abs(figures.experts_off))


def _side(stream: str) -> Callable[[Evidence, str], str]:
    """On which side of the truth the number of experts is."""

    def note(evidence: Evidence, end: str) -> str:
        off = evidence.figures[stream + end, OURS].experts_off
        return f"{abs(off)} too {'many' if off > 0 else 'few'}" if off else ""

    return note


def _scaled(found: Interval, scale: float) -> Interval:
    return Interval(found.value * scale, found.low * scale, found.high * scale)


_CLAIMS = (
    _Claim("average accuracy, hard switches, no ids / bank with oracle ids",
           _ratio("hard", ORACLE), "at least", 0.97, 1.0),
    _Claim("average accuracy, hard switches, no ids / multi-task LoRA at equal tokens",
           _ratio("hard", MULTI), "at least", 0.96, 1.05),
    _Claim("average accuracy, blurred stream / bank with oracle ids",
           _ratio("blurred", ORACLE, "hard"), "at least", 0.93, 0.97),
    _Claim("average accuracy, mixed unlabelled traffic / bank with oracle ids",
           _ratio("mixed", ORACLE, "hard"), "at least", 0.85, 0.95),
    _Claim("backward transfer, hard switches, points",
           _figure("hard", "backward transfer", lambda f: f.backward_transfer, 100),
           "at least", -1.0, 0.0),
    _Claim("experts grown minus true skills, hard switches",
           _figure("hard", "number of experts", _grown), "at most", 1, 0, _side("hard")),
    _Claim("experts grown minus true skills, blurred stream",
           _figure("blurred", "number of experts", _grown), "at most", 1, 0, _side("blurred")),
    _Claim("experts grown minus true skills, mixed traffic",
           _figure("mixed", "number of experts", _grown), "at most", 1, 0, _side("mixed")),
    _Claim("new experts for a skill that returns",
           _figure("returning", "skill that returns",
                   lambda f: None if f.new_for_returning is None else float(f.new_for_returning)),
           "at most", 0, 0),
    _Claim("routing accuracy, distinct skills, %",
           _figure("hard", "routing of distinct skills", lambda f: f.routing_distinct, 100),
           "at least", 97, 99),
    _Claim("routing accuracy, near neighbours, %",
           _figure("hard", "routing of near neighbours", lambda f: f.routing_near, 100),
           "at least", 90, 95),
    _Claim("AUROC for single inputs of unseen skills", _screened("unseen"),
           "at least", 0.95, 0.99),
    _Claim("AUROC for single inputs of clinc150 out of scope", _screened("out of scope"),
           "at least", None, 0.85),
    _Claim("points of accuracy ahead of O-LoRA, hard switches", _ahead("hard", ORTHOGONAL),
           "at least", 5, 15, _of_several("hard", ORTHOGONAL)),
    _Claim("base's loss on text of no skill, relative change", _base_change,
           "at most", 0.01, 0.0),
)  # fmt: skip
