"""Trainings of one skill in a variant and by default, compared; as rows and as a table.

Plain numbers; trains nothing and imports no model library.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from measured import Row

AS_IT_IS = "as it is"

Figure = tuple[float, float, float]
"""A value with the ends of its interval."""


@dataclass(frozen=True)
class Run:
    """What came out of one training.

    Attributes:
        variant, skill, rows, seed: of what.
        loss: over the test rows, nats, token mean.
        right: share of the test rows whose greedy answer is the expected one to the letter.
        tokens: of all updates.
        seconds: of the training.
        test: test rows that were asked for.
        routed: mean over the pool's skills of the loss of their test rows as the router sends
            them; None where there is no router in question.
        operations: floating point operations of the training's updates; None where nobody counted.
        failed: why the training came to nothing; its numbers are then zero and say nothing.
    """

    variant: str
    skill: str
    rows: int
    seed: int
    loss: float
    right: float
    tokens: int
    seconds: float
    test: int = 200
    routed: float | None = None
    operations: float | None = None
    failed: str | None = None


@dataclass(frozen=True)
class Compared:
    """A variant over what it is by default, skill by skill and seed by seed.

    Attributes:
        variant, rows: of the trainings.
        pairs: the variant's training and the default's, where both came to something.
        failures: pairs of which one did not. A mean of the others would be of the easy ones, so
            then there is no figure to give.
    """

    variant: str
    rows: int
    pairs: tuple[tuple[Run, Run], ...]
    failures: tuple[tuple[Run, Run], ...] = ()

    @property
    def loss(self) -> Figure | None:
        """Geometric mean of the ratios over skills, each skill's over its seeds, with the 95%
        interval over skills of a t test on their logarithm."""
        return self._ratio(lambda one: one.loss)

    @property
    def tokens(self) -> float | None:
        """Ratio of the tokens trained on."""
        found = self._ratio(lambda one: one.tokens)
        return found and found[0]

    @property
    def operations(self) -> float | None:
        """What it costs: ratio of the operations of the updates; seconds depend on who else is
        there. None where they were not counted in every training."""
        found = self._ratio(lambda one: one.operations)
        return found and found[0]

    @property
    def seconds(self) -> float | None:
        """Ratio of the seconds, on a machine that others may have used."""
        found = self._ratio(lambda one: one.seconds)
        return found and found[0]

    @property
    def routed(self) -> Figure | None:
        """As `loss`, of what the router answers; None where it was not asked in every training."""
        return self._ratio(lambda one: one.routed)

    @property
    def right(self) -> Figure | None:
        """Mean difference in points, over skills as in `loss`."""
        return self._over_skills([100 * (a.right - b.right) for a, b in self.pairs])

    @property
    def said(self) -> str:
        """How many trainings there are, and how many of them failed."""
        count = len(self.pairs) + len(self.failures)
        failed = f"; {len(self.failures)} of {count} pairs failed" if self.failures else ""
        return f"{count} trainings each{failed}"

    def _ratio(self, of: Callable[[Run], float | None]) -> Figure | None:
        pairs = [(of(a), of(b)) for a, b in self.pairs]
        logs = [math.log(a / b) for a, b in pairs if a is not None and b is not None]
        found = self._over_skills(logs) if len(logs) == len(pairs) else None
        return found and (math.exp(found[0]), math.exp(found[1]), math.exp(found[2]))

    def _over_skills(self, values: Sequence[float]) -> Figure | None:
        """The mean over skills of the means over their seeds, with the interval over skills: a
        skill's seeds differ less than skills do, and are no further ones."""
        if self.failures:
            return None
        by: dict[str, list[float]] = {}
        for (one, _), value in zip(self.pairs, values, strict=True):
            by.setdefault(one.skill, []).append(value)
        return _interval([statistics.fmean(own) for own in by.values()])


def compared(runs: Sequence[Run]) -> list[Compared]:
    """Each variant that has trainings by default beside it, in the order of its first one."""
    found = []
    for rows in sorted({one.rows for one in runs}):
        here = [one for one in runs if one.rows == rows]
        usual = {(o.skill, o.seed, o.test): o for o in here if o.variant == AS_IT_IS}
        for name in dict.fromkeys(one.variant for one in here if one.variant != AS_IT_IS):
            pairs = tuple(
                (one, usual[one.skill, one.seed, one.test])
                for one in here
                if one.variant == name and (one.skill, one.seed, one.test) in usual
            )
            if pairs:
                failed = tuple(pair for pair in pairs if any(one.failed for one in pair))
                whole = tuple(pair for pair in pairs if pair not in failed)
                found.append(Compared(name, rows, whole, failed))
    return found


def rows(runs: Sequence[Run]) -> list[Row]:
    """The scoreboard's rows."""
    found = []
    for one in compared(runs):
        for what, ratio in (("held-out loss", one.loss), ("routed loss", one.routed)):
            if ratio is None and (what == "routed loss" or not one.failures):
                continue
            value, low, high = ratio or (None, None, None)
            measure = f"{what}, {one.variant}, {one.rows} rows / {AS_IT_IS}"
            found.append(Row(measure, value, low=low, high=high, note=one.said, interval=True))
    return found


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line for each variant, with each skill's ratio."""
    read = [Run(**one) for one in runs]
    skills = list(dict.fromkeys(one.skill for one in read))
    titles = [
        "variant",
        "rows",
        "loss / as it is",
        *skills,
        "exact answers, points",
        "tokens / as it is",
        "operations / as it is",
    ]
    there = compared(read)
    asked = any(one.routed is not None for one in read)
    titles += ["seconds / as it is", "routed loss / as it is"] if asked else []
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for one in there:
        each = []
        for skill in skills:
            logs = [math.log(a.loss / b.loss) for a, b in one.pairs if a.skill == skill]
            lost = any(pair[0].skill == skill for pair in one.failures)
            each.append(
                "failed" if lost else f"{math.exp(statistics.fmean(logs)):.3f}" if logs else "-"
            )
        cells = [
            one.variant, str(one.rows), shown(one.loss) if one.loss else "failed", *each,
            shown(one.right, "+.1f"), _factor(one.tokens), _factor(one.operations),
        ]  # fmt: skip
        if asked:
            cells += [_factor(one.seconds), shown(one.routed)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shown(found: Figure | None, form: str = ".3f") -> str:
    """A value and its interval; a dash for none."""
    if found is None:
        return "-"
    value, low, high = (format(one, form) for one in found)
    return f"{value} [{low}, {high}]"


def _factor(found: float | None) -> str:
    return "-" if found is None else f"{found:.2f}"


def _interval(values: Sequence[float]) -> Figure:
    """The mean with the ends of its 95% interval by Student's t; one value has none."""
    middle = statistics.fmean(values)
    if len(values) < 2:
        return middle, middle, middle
    from scipy.stats import t

    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(t.ppf(0.975, len(values) - 1)) * error
    return middle, middle - half, middle + half
