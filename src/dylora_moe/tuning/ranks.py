"""Rank against quality: what each rank came to, and the smallest that does as well as the best.

Knows trials; trains nothing. The rule is that of one standard error (Breiman et al. 1984, section
3.4.3: the smallest model that the best does not beat by more than chance), with the paired 95%
interval over rows in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dylora_moe.config import LearnSettings
from dylora_moe.records import Interval
from dylora_moe.scoring.bootstrap import Paired, mean_ratio
from dylora_moe.tuning.search import Trial
from dylora_moe.tuning.space import RANK, differences, with_values


@dataclass(frozen=True)
class RankPoint:
    """What experts of one rank came to.

    Attributes:
        rank: theirs.
        parameters: of each.
        against: loss / that of the best rank, mean over skills, over judged rows; exactly 1 for
            the best.
        seconds: of the trainings.
    """

    rank: int
    parameters: int
    against: Interval
    seconds: float

    @property
    def is_enough(self) -> bool:
        """Whether the best may be better by chance alone: the interval does not lie above 1."""
        return self.against.low <= 1.0


@dataclass(frozen=True)
class RankCurve:
    """Rank against quality.

    Attributes:
        points: from the lowest rank to the highest.
        best: the rank of the lowest loss over watched rows.
        suggested: the lowest rank that is enough.
        settings: what to learn with, as dotted keys, where they are not the defaults: those that
            one started from, at that rank.
    """

    points: tuple[RankPoint, ...]
    best: int
    suggested: int
    settings: Mapping[str, Any]

    @property
    def message(self) -> str:
        """One line for people."""
        if self.suggested == self.best == self.points[0].rank:
            return f"suggested rank: {self.best}, the lowest one tried; none above it does better"
        if self.suggested == self.best:
            return f"suggested rank: {self.best}; every lower one tried does worse"
        found = next(one.against for one in self.points if one.rank == self.suggested)
        return (
            f"suggested rank: {self.suggested}; loss {found.value:.3f} of that of rank {self.best} "
            f"[{found.low:.3f}, {found.high:.3f}], which may be chance"
        )


def rank_curve(trials: Sequence[Trial], start: LearnSettings) -> RankCurve | None:
    """The curve of a search for the rank alone; None of any other, whose ranks differ in more, and
    of less than two ranks.

    Args:
        trials: of one search.
        start: what it started from.
    """
    whole = [one for one in trials if one.whole]
    if any(one.values.keys() != {RANK} for one in whole):
        return None
    tried: dict[int, Trial] = {}
    for one in whole:
        tried.setdefault(int(one.values[RANK]), one)
    if len(tried) < 2:
        return None
    best = min(tried.values(), key=lambda one: one.ratio)
    points = tuple(_point(rank, tried[rank], best) for rank in sorted(tried))
    suggested = next(one.rank for one in points if one.is_enough)
    settings = differences(with_values(start, {RANK: suggested}))
    return RankCurve(points, int(best.values[RANK]), suggested, settings)


def _point(rank: int, trial: Trial, best: Trial) -> RankPoint:
    parameters = max(one.parameters for one in trial.skills.values())
    against = Interval(1.0, 1.0, 1.0)
    if trial is not best:
        against = mean_ratio(
            [
                Paired(trial.skills[name].judged, one.judged, one.weights)
                for name, one in best.skills.items()
            ]
        )
    return RankPoint(rank, parameters, against, trial.seconds)
