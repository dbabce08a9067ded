"""The classifier two-sample test: can these examples be told from those?

Knows two sets of feature vectors; knows neither skills nor thresholds. The answer is the
cross-validated AUC of a regularised linear classifier with its 95% interval: 0.5 where the two sets
are the same to it, 1 where it tells them apart.

Sources: Lopez-Paz and Oquab (2017), "Revisiting Classifier Two-Sample Tests"; interval: Newcombe
(2006), "Confidence intervals for an effect size measure based on the Mann-Whitney statistic", part
2, method 5, with the variance of Hanley and McNeil (1982).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dylora_moe.errors import ConfigError, DataError
from dylora_moe.foundation.gram import gram
from dylora_moe.records import Interval
from dylora_moe.scoring.detection import auroc

_Z = 1.959963984540054
"""The 97.5% point of the normal distribution."""

_TRAINING = 1.35
"""How much wider the AUC spreads than with a classifier given beforehand, since it is trained on
the rows it is judged by. Simulated: 1.39, 1.34, 1.41, 1.27 and 1.14 (48, 48, 48, 64 and 128 rows a
side); with it 95% to 99% of the intervals hold the expected AUC, without it 86% to 94%."""


def separability(
    new: Float[Tensor, "n d"],
    old: Float[Tensor, "m d"],
    seed: int = 0,
    *,
    folds: int = 5,
    repeats: int = 3,
    shrinkage: float = 0.1,
    per_side: int = 256,
) -> Interval:
    """AUC of shrinkage LDA between two sets of features, out of fold.

    Deterministic in the rows, their order and the seed. Milliseconds at 64 a side.

    Args:
        new: features of the examples in question.
        old: stored features of a skill.
        seed: of the folds, and of the choice of rows.
        folds: stratified; fewer where a side is smaller.
        repeats: of the whole cross-validation with other folds; the AUC is their mean.
        shrinkage: of the within-class scatter after standardisation, in (0, 1).
        per_side: more rows than this are sampled down, to bound the time.

    Raises:
        DataError: a side has fewer than two rows, or the widths differ.
        ConfigError: shrinkage of 0, 1 or beyond.
    """
    require_shrinkage(shrinkage)
    if min(new.shape[0], old.shape[0]) < 2 or new.shape[-1] != old.shape[-1]:
        raise DataError(
            f"features of shapes {tuple(new.shape)} and {tuple(old.shape)} cannot be compared; the "
            "test needs two rows or more on each side and the same width"
        )
    generator = torch.Generator().manual_seed(seed)
    sides = [_sample(rows.detach().cpu().float(), per_side, generator) for rows in (old, new)]
    rows = torch.cat(sides)
    labels = torch.cat([torch.full((len(side),), i) for i, side in enumerate(sides)])
    folds = min(folds, *(len(side) for side in sides))
    # Of the rows a fold trains on, which is the same for all of them but for one or two.
    freedom = max(1.0, len(rows) * (1 - 1 / folds) - 2)
    left_out = FoldScores(rows, labels, shrinkage / (1 - shrinkage) * freedom)
    values = []
    for _ in range(repeats):
        fold = torch.cat([_folds(len(side), folds, generator) for side in sides])
        # In units of the squared distance; what differs by rounding alone is a tie.
        scores = (left_out.scores(fold) * freedom * 1e9).round()
        values.append(auroc(scores[labels == 1].tolist(), scores[labels == 0].tolist()))
    return auc_interval(sum(values) / len(values), len(sides[1]), len(sides[0]), _TRAINING)


def require_shrinkage(shrinkage: float) -> None:
    """ConfigError where no scatter would be left, or nothing but it."""
    if not 0.0 < shrinkage < 1.0:
        raise ConfigError(f"shrinkage is {shrinkage}; give a number above 0 and below 1, as 0.1")


def auc_interval(value: float, n: int, m: int, widening: float = 1.0) -> Interval:
    """95% interval of an AUC from n positives and m negatives.

    `widening` multiplies the standard error of a fixed score.

    Each end is the AUC whose own standard error just reaches the estimate, so that the interval
    has a width even at 0 and 1, where the plain one collapses.
    """

    def error(theta: float) -> float:
        half = (n + m) / 2 - 1
        spread = 1 + half * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return widening * _Z * math.sqrt(max(theta * (1 - theta) * spread, 0.0) / (n * m))

    def end(limit: float) -> float:
        inside, outside = value, limit
        for _ in range(60):
            middle = (inside + outside) / 2
            if abs(value - middle) <= error(middle):
                inside = middle
            else:
                outside = middle
        return outside

    return Interval(value, end(0.0), end(1.0))


class FoldScores:
    """LDA scores of rows that were left out, all of them from one Gram matrix and one inverse.

    Rows are standardised over both sides together, before anything knows which side they are of:
    so the rows that judge a classifier have no part in it, and two sides of one source get 0.5.
    (Standardised by the spread within the sides, over all rows at once, they would get 0.52 at 16
    rows a side.) After that everything is as large as the rows are many.

    With X the standardised rows and `A = (X X^T + r I)^-1`, leaving out a fold T needs no new
    inverse: that of the others is `A_II - A_IT A_TT^-1 A_TI`. With S the scatter about the means of
    the sides, the direction is `(S + r I)^-1 (m_1 - m_0)`. S is X^T X less rank two, so by
    Woodbury's identity the rows of T get `-N E^-1 c / r`, and the midpoint of the means
    `sum((E^-1 c - r c) / sqrt(n)) / 2r`, where V holds the sides' unit indicators over the rest,
    `c = (-1 / sqrt(n_0), 1 / sqrt(n_1))`, `N = A_TT^-1 (A V)_T` and `E = V^T A V - (A V)_T^T N`.

    Args:
        rows: both sides.
        labels: 0 or 1 for each.
        ridge: r; `s / (1 - s)` times the degrees of freedom for a shrinkage of s.
    """

    def __init__(self, rows: Float[Tensor, "n d"], labels: Int[Tensor, " n"], ridge: float) -> None:
        self.ridge = ridge
        self.sides = torch.nn.functional.one_hot(labels, 2).double()
        # float32 keeps the digits, since what is left is of the size of one: the sum of d products
        # errs by some 1e-3, and the ridge is in the tens.
        system = gram(_standardised(rows)).double()
        system.diagonal().add_(ridge)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(system))

    def scores(self, fold: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The score of each row by a classifier trained on the rows of the other folds.

        A fold may leave no side without rows.
        """
        found = torch.empty(len(fold), dtype=torch.float64)
        for index in range(int(fold.max()) + 1):
            inside, test = (fold != index).double(), (fold == index).nonzero()[:, 0]
            shares = self.sides * inside[:, None]
            roots = shares.sum(0).sqrt()
            shares = shares / roots
            pulled = self.inverse @ shares
            factor = torch.linalg.cholesky(self.inverse[test][:, test])
            left = torch.cholesky_solve(pulled[test], factor)
            apart = torch.stack([-1 / roots[0], 1 / roots[1]])
            along = torch.linalg.solve(shares.T @ pulled - pulled[test].T @ left, apart)
            middle = ((along - self.ridge * apart) / roots).sum() / 2
            found[test] = -(left @ along + middle) / self.ridge
        return found


def _standardised(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    centred = (rows - rows.mean(0)).float()
    std = centred.square().mean(0).sqrt()
    return centred.div_(torch.where(std > 0, std, torch.ones_like(std)))


def _sample(rows: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    if len(rows) <= limit:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:limit].sort().values]


def _folds(n: int, folds: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """A random fold for each row, of sizes that differ by one at most."""
    return torch.randperm(n, generator=generator) % folds
