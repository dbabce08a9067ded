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
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dylora_moe.errors import DataError
from dylora_moe.foundation.statistics import double
from dylora_moe.records import Interval

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
        shrinkage: of the within-class scatter after standardisation, in (0, 1].
        per_side: more rows than this are sampled down, to bound the time.

    Raises:
        DataError: a side has fewer than two rows, or the widths differ.
    """
    if min(new.shape[0], old.shape[0]) < 2 or new.shape[-1] != old.shape[-1]:
        raise DataError(
            f"features of shapes {tuple(new.shape)} and {tuple(old.shape)} cannot be compared; the "
            "test needs two rows or more on each side and the same width"
        )
    generator = torch.Generator().manual_seed(seed)
    sides = [_sample(double(rows), per_side, generator) for rows in (old, new)]
    rows = torch.cat(sides)
    labels = torch.cat([torch.full((len(side),), i) for i, side in enumerate(sides)])
    folds = min(folds, *(len(side) for side in sides))
    centred = FoldScores(rows, labels)
    values = []
    for _ in range(repeats):
        fold = torch.cat([_folds(len(side), folds, generator) for side in sides])
        scores = torch.empty(len(rows), dtype=torch.float64)
        for index in range(folds):
            test = fold == index
            scores[test] = centred.scores(test, shrinkage)
        values.append(auc(scores[labels == 1], scores[labels == 0]))
    return auc_interval(sum(values) / len(values), len(sides[1]), len(sides[0]), _TRAINING)


def auc(positive: Float[Tensor, " n"], negative: Float[Tensor, " m"]) -> float:
    """Share of pairs in which the positive score is higher; ties count half."""
    difference = positive[:, None] - negative[None, :]
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())


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
    """LDA scores of rows that were left out, in the dual form: the system is as large as the rows
    are many.

    With X the centred, standardised training rows, the direction is `R^-1 delta` with
    `R = a X^T X + s I` and `a = (1 - s) / (n - 2)`, which by Woodbury's identity is
    `(delta - X^T (s/a I + X X^T)^-1 X delta) / s`. What is the same in every fold is done once:
    each side is centred on its own mean, so that a fold's means and variances follow from sums
    without losing digits, and its Gram matrix is centred by itself instead of its rows.
    """

    def __init__(self, rows: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None:
        self.sides = torch.nn.functional.one_hot(labels, 2).T.double()
        self.centres = self.sides @ rows / self.sides.sum(1, keepdim=True)
        self.labels = labels
        self.rows = rows - self.centres[labels]
        self.squares = self.rows.square()

    def scores(self, test: Bool[Tensor, " n"], shrinkage: float) -> Float[Tensor, " t"]:
        """Scores of the rows where `test` is true, of a classifier trained on the others."""
        inside = (~test).nonzero()[:, 0]
        share = self.sides[:, inside]
        counts = share.sum(1, keepdim=True)
        share = share / counts
        train = self.rows[inside]
        shift = share @ train
        freedom = max(1, len(inside) - 2)
        sums = (~test).double() @ self.squares
        variance = (sums - (counts * shift.square()).sum(0)) / freedom
        std = torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()
        train /= std
        shift, centres = shift / std, self.centres / std
        means = shift + centres
        delta = means[1] - means[0]
        points = self.rows[test] / std + (centres[self.labels[test]] - means.mean(0))
        if shrinkage >= 1:
            return points @ delta
        gram = _gram(train)
        # (I - P) G (I - P) with P the projection on each side's mean.
        labels = self.labels[inside]
        gram -= (share @ gram)[labels]
        gram -= (gram @ share.T)[:, labels]
        gram.diagonal().add_(shrinkage * freedom / (1 - shrinkage))
        along = train @ delta - (shift @ delta)[labels]
        solved = torch.cholesky_solve(along[:, None], torch.linalg.cholesky(gram))[:, 0]
        pulled = solved @ train - (share * counts @ solved) @ shift
        return points @ (delta - pulled) / shrinkage


def _gram(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """`rows @ rows.T`, the block below the diagonal computed once."""
    half = len(rows) // 2
    upper, lower = rows[:half], rows[half:]
    gram = rows.new_empty(len(rows), len(rows))
    torch.mm(upper, upper.T, out=gram[:half, :half])
    torch.mm(lower, lower.T, out=gram[half:, half:])
    torch.mm(lower, upper.T, out=gram[half:, :half])
    gram[:half, half:] = gram[half:, :half].T
    return gram


def _sample(rows: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    if len(rows) <= limit:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:limit].sort().values]


def _folds(n: int, folds: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """A random fold for each row, of sizes that differ by one at most."""
    return torch.randperm(n, generator=generator) % folds
