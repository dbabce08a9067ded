"""Trainings of one skill in a variant and by default, compared; as rows and as a table.

Plain numbers; trains nothing and imports no model library.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from measured import Row

AS_IT_IS = "as it is"


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


@dataclass(frozen=True)
class Compared:
    """A variant over what it is by default, skill by skill and seed by seed.

    Attributes:
        variant, rows: of the trainings.
        pairs: the variant's training and the default's.
    """

    variant: str
    rows: int
    pairs: tuple[tuple[Run, Run], ...]

    @property
    def loss(self) -> tuple[float, float, float]:
        """Geometric mean of the ratios, with the 95% interval of a t test on their logarithm."""
        return _ratio([a.loss / b.loss for a, b in self.pairs])

    @property
    def tokens(self) -> float:
        """What it costs: ratio of the tokens trained on; seconds depend on who else is there."""
        return _ratio([a.tokens / b.tokens for a, b in self.pairs])[0]

    @property
    def seconds(self) -> float:
        """Ratio of the seconds, on a machine that others may have used."""
        return _ratio([a.seconds / b.seconds for a, b in self.pairs])[0]

    @property
    def routed(self) -> tuple[float, float, float] | None:
        """As `loss`, of what the router answers; None where it was not asked in every training."""
        pairs = [(a.routed, b.routed) for a, b in self.pairs]
        found = [a / b for a, b in pairs if a is not None and b is not None]
        return _ratio(found) if len(found) == len(pairs) else None

    @property
    def right(self) -> tuple[float, float, float]:
        """Mean difference in points."""
        return _interval([100 * (a.right - b.right) for a, b in self.pairs])


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
                found.append(Compared(name, rows, pairs))
    return found


def rows(runs: Sequence[Run]) -> list[Row]:
    """The scoreboard's rows."""
    found = []
    for one in compared(runs):
        note = f"{len(one.pairs)} trainings each"
        for what, ratio in (("held-out loss", one.loss), ("routed loss", one.routed)):
            if ratio is None:
                continue
            value, low, high = ratio
            measure = f"{what}, {one.variant}, {one.rows} rows / {AS_IT_IS}"
            found.append(Row(measure, value, low=low, high=high, note=note, interval=True))
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
    ]
    there = compared(read)
    asked = any(one.routed for one in there)
    titles += ["seconds / as it is", "routed loss / as it is"] if asked else []
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for one in there:
        each = []
        for skill in skills:
            ratios = [a.loss / b.loss for a, b in one.pairs if a.skill == skill]
            each.append(
                f"{math.exp(statistics.fmean(map(math.log, ratios))):.3f}" if ratios else "-"
            )
        right, routed = one.right, one.routed
        cells = [
            one.variant, str(one.rows), _shown(one.loss), *each,
            f"{right[0]:+.1f} [{right[1]:+.1f}, {right[2]:+.1f}]", f"{one.tokens:.2f}",
        ]  # fmt: skip
        if asked:
            cells += [f"{one.seconds:.2f}", _shown(routed) if routed is not None else "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shown(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}]"


def _ratio(values: Sequence[float]) -> tuple[float, float, float]:
    middle, low, high = (math.exp(x) for x in _interval([math.log(value) for value in values]))
    return middle, low, high


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean with the ends of its 95% interval by Student's t; one value has none."""
    middle = statistics.fmean(values)
    if len(values) < 2:
        return middle, middle, middle
    from scipy.stats import t

    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(t.ppf(0.975, len(values) - 1)) * error
    return middle, middle - half, middle + half
