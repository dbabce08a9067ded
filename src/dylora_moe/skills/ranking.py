"""Which skills are nearest to a point: Mahalanobis distances from a sample of the skills' rows.

Knows means and rows; knows no library and no test. It chooses whom the test looks at, so the order
counts and not the last digit: 512 rows, as many of each skill, stand for the scatter of all, and
the system to be factored (`skills.within`) is as large as they are many, however wide the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.foundation.statistics import double
from dylora_moe.skills.within import Within

MOST_ROWS = 512
"""Rows that stand for the scatter. On features of SmolLM2-135M, among 8 and among 118 skills, the
skill of the lowest separability was among the first three as often as with the scatter of all."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """The skills' means under the scatter within skills, shrunk towards the identity.

    Attributes:
        centre, std: what the means and every point are standardised by; float64.
        within: the scatter of the sampled rows about their skills' means.
        means: of the skills, standardised.
        pulled: `Within.pulled` of each mean, so that a point costs no more than one itself.
        shrinkage: of the scatter.
    """

    centre: Float[Tensor, " d"]
    std: Float[Tensor, " d"]
    within: Within
    means: Float[Tensor, "k d"]
    pulled: Float[Tensor, "k n"]
    shrinkage: float

    @classmethod
    def of(
        cls,
        means: Float[Tensor, "k d"],
        rows: Sequence[Float[Tensor, "_ d"]],
        counts: Sequence[int],
        shrinkage: float,
        most: int = MOST_ROWS,
    ) -> Ranking:
        """Means of the skills, the rows stored of each, and of how many rows each mean is.

        The first stored rows of a skill are taken, so they should be in no order that means
        anything.
        """
        told = [one for one in zip(means, rows, counts, strict=True) if one[2] > 1]
        told = told[:: max(1, -(-len(told) // most))]
        limit = _limit([len(part) for _, part, _ in told], most)
        sampled = [
            # The mean is of these rows too, and so nearer to them than to others.
            (double(part[:limit]) - mean) * (count / (count - 1)) ** 0.5
            for mean, part, count in told
        ]
        inner = torch.cat([*sampled, means[:0]])
        variance = inner.square().sum(0) / max(1, len(inner))
        std = torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()
        centre = means.mean(0)
        within = Within.of(inner / std, len(inner), shrinkage)
        points = ((means - centre) / std).float()
        return cls(centre, std, within, points, within.pulled(points), shrinkage)

    def distances(self, point: Float[Tensor, " d"]) -> Float[Tensor, " k"]:
        """From each mean to the point, divided by the square root of the width."""
        at = ((point - self.centre) / self.std).float()[None]
        squares = self.within.squared(self.means - at, self.pulled - self.within.pulled(at))
        return (squares / (self.shrinkage * at.shape[1])).sqrt()


def _limit(sizes: Sequence[int], most: int) -> int:
    """Rows of each part, so that all of them together are `most` or fewer; one at least."""
    left = most
    for taken, size in enumerate(sorted(sizes)):
        share = max(1, left // (len(sizes) - taken))
        if size > share:
            return share
        left -= size
    return max(sizes, default=1)
