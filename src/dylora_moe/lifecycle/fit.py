"""How well an expert does on rows, beside the base and beside itself at home: a verdict's fit.

Knows losses of rows; knows neither pools nor models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.records import Interval
from dylora_moe.training.measure import RowLosses

FEWEST = 8
"""Rows of a first look, every second one of a glance: what `does_badly_by_t` is made for."""
_STUDENT = 3.499
"""Student's t of `FEWEST - 1` degrees of freedom that 99% of the values are within; so few rows
are too few to be drawn from again and again."""
_RESAMPLES = 1000
WORST_HOME, WORST_APART = 0.9, 0.25
"""Share of the base's loss that an expert is taken to lose at home, at the most: where rows cannot
be told from its own, and where they can. Else as little as a poor expert gains at home would do for
any rows; and rows that are told apart are covered by an expert that takes most of the base's loss
away, not by one that does as badly there as at home."""


@dataclass(frozen=True, slots=True)
class Home:
    """How an expert does on its own skill.

    Attributes:
        loss: its validation loss there; NaN where it has none.
        base: the base's on the same kind of rows; None where nobody knows.
        worst: share of the base's loss that counts at the most.
    """

    loss: float
    base: float | None = None
    worst: float = WORST_HOME

    def on(self, theirs: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        """What an expert that does as well as this one at home would lose where the base loses
        `theirs`, token means: the same share of it. So an expert of a hard skill does not do well
        on easy rows by losing less there than at home. The loss at home as it is where the base's
        there is not known.
        """
        if self.base is not None and self.base > 0:
            return min(self.known_loss / self.base, self.worst) * theirs
        return (self.worst * theirs).clamp_max(self.known_loss)

    @property
    def known_loss(self) -> float:
        """The loss, 0 where there is none."""
        return self.loss if self.loss == self.loss else 0.0


def does_badly_by_t(expert: RowLosses, base: RowLosses, home: Home, limit: float) -> bool:
    """Whether the relative loss is above the limit by a t test over the rows (one-sided, 99.5%).

    `(expert - home) / span > limit` is `mean(expert - home - limit * span) > 0`, over the rows; so
    a test of one mean decides it, which a ratio over few rows has none of. Of the two spans that
    `relative_loss` takes the larger of, both have to say so.

    Args:
        expert, base, home: as of `relative_loss`, on `FEWEST` rows.
        limit: relative loss above which an expert does badly.
    """
    tokens, theirs = expert.tokens.double(), base.total.double()
    # The bound of an absolute loss is left out: row by row it would favour one side.
    own = home.known_loss * tokens if home.base is None else home.on(theirs)
    above = expert.total.double() - own
    spans = theirs - own, 0.1 * theirs
    return all(_is_positive(above - limit * span) for span in spans)


def _is_positive(values: Float[Tensor, " rows"]) -> bool:
    assert len(values) == FEWEST, "the quantile is that of so many rows"
    error = float(values.std()) / math.sqrt(len(values))
    return float(values.mean()) > _STUDENT * error


def relative_loss(
    expert: RowLosses, base: RowLosses, home: Home, seed: int = 0, level: float = 0.95
) -> Interval:
    """(expert - home) / (base - home) with a bootstrap interval over the rows.

    Args:
        expert: losses of the expert on the new rows.
        base: losses of the base on the same rows.
        home: how the expert does on its own skill, from which follows what it would lose here
            (`Home.on`).
        seed: of the draws.
        level: of the interval.

    Returns:
        0 as good as on its own data, 1 no better than the base. The denominator is a tenth of the
        base's loss at least.
    """
    generator = torch.Generator().manual_seed(seed)
    n = len(expert.total)
    draws = torch.randint(n, (_RESAMPLES, n), generator=generator)
    draws = torch.cat([torch.arange(n)[None], draws])
    tokens = expert.tokens.double()[draws].sum(1).clamp_min(1)
    ours = expert.total.double()[draws].sum(1) / tokens
    theirs = base.total.double()[draws].sum(1) / tokens
    own = home.on(theirs)
    ratios = (ours - own) / torch.maximum(theirs - own, 0.1 * theirs).clamp_min(1e-6)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = ratios[1:].quantile(ends).tolist()
    return Interval(float(ratios[0]), low, high)
