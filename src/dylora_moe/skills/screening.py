"""Is one single input foreign to all skills? A score in features alone, and where to draw the line.

Knows means, the scatter within skills and rows that belong to none; knows no gate, no text and no
answers. One input is never enough to decide what is new: what is strange here waits for others of
its kind (`skills.clustering`).

The score is 1 less the cosine between an input and the nearest skill's mean, both seen from the
mean of what is foreign (the prompts that the base writes by itself) where the shrunk scatter within
skills is the identity: the space of the closed form. A direction and not a distance, since the size
of a distance mostly measures the length of the text; seen from the foreign rows and not from the
middle of the skills, since a new skill lies between them as often as not. Measured beside energy,
relative Mahalanobis distance (Ren et al. 2021), neighbours (Sun et al. 2022), the residual outside
the means (ViM, Wang et al. 2022) and the closed form's own *no expert* in docs/lab-log.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from dylora_moe.errors import ConfigError
from dylora_moe.foundation.statistics import FeatureStatistics, SharedScatter, double, stack_means
from dylora_moe.skills.library import SkillLibrary

MOST_ROWS = 2560
"""Stored rows that the line is drawn by, as many of each skill."""


@dataclass(frozen=True, eq=False)
class Screened:
    """What the screen says of inputs, one by one.

    Attributes:
        scores: 0 in the direction of a skill's mean, 1 across it, 2 opposite.
        nearest: the skill that each is nearest to, an index into the screen's skills; -1 where
            there is none.
        strange: True where an input is foreign to all of them.
    """

    scores: Float[Tensor, " n"]
    nearest: Int[Tensor, " n"]
    strange: Bool[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Screen:
    """A pool's skills as single inputs are held against them; `screen_of` makes it.

    Attributes:
        skill_ids: the skills.
        directions: their means, whitened and seen from the origin.
        counts: rows that each mean is of.
        origin: mean of what is foreign, float64.
        scale: standard deviation within skills, float64.
        factor: lower Cholesky factor of the shrunk correlation within skills.
        pull: weight of the scatter in that correlation.
        threshold: a score above it is strange.
    """

    skill_ids: tuple[str, ...]
    directions: Float[Tensor, "k d"]
    counts: tuple[int, ...]
    origin: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    factor: Float[Tensor, "d d"]
    pull: float
    threshold: float

    def __call__(self, features: Float[Tensor, "n d"]) -> Screened:
        """Holds each input against the skills; what it says depends on that input alone."""
        if not self.skill_ids:
            n = features.shape[0]
            return Screened(torch.full((n,), 2.0), torch.full((n,), -1), torch.ones(n).bool())
        cosines = normalize(self.whiten(features), dim=-1) @ normalize(self.directions, dim=-1).T
        best = cosines.max(1)
        scores = 1 - best.values
        return Screened(scores, best.indices, scores > self.threshold)

    def whiten(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Rows in the space of `directions`: the origin is what is foreign."""
        # Centred in float64: features lie far from zero.
        points = ((double(features) - self.origin) / self.scale).to(self.factor.dtype)
        solved: Tensor = torch.linalg.solve_triangular(self.factor, points.T, upper=False)
        return solved.T

    def left_out(self, features: Float[Tensor, "n d"], skill: int) -> Float[Tensor, " n"]:
        """Scores of a skill's own rows, each by a screen made without it.

        With more features than rows a row lies nearer to a mean that it is part of than any new one
        would. Without the row x, with v from its skill's mean to it, the mean moves by -v / (n - 1)
        and the correlation loses `a v v^T` with `a = pull n / (n - 1)`; here that correlation is
        the identity, so (Sherman and Morrison, 1950) inner products become `p.q + g (p.v) (q.v)`
        with `g = a / (1 - a |v|^2)`. The standardisation and its degrees of freedom are kept.

        Args:
            features: rows that are contained in the skill's statistics, two or more.
            skill: index of the skill.
        """
        n, points = self.counts[skill], self.whiten(features)
        own = self.directions[skill]
        apart = points - own
        a = self.pull * n / (n - 1)
        gain = a / (1 - a * torch.linalg.vecdot(apart, apart)).clamp_min(1e-6)
        inner = points @ self.directions.T
        along = apart @ self.directions.T
        squares = self.directions.square().sum(1).expand(len(points), -1).clone()
        mean = own - apart / (n - 1)
        inner[:, skill] = torch.linalg.vecdot(points, mean)
        along[:, skill] = torch.linalg.vecdot(apart, mean)
        squares[:, skill] = torch.linalg.vecdot(mean, mean)
        across = torch.linalg.vecdot(points, apart)
        length = torch.linalg.vecdot(points, points) + gain * across.square()
        squares += gain[:, None] * along.square()
        size = (length[:, None] * squares).clamp_min(1e-12).sqrt()
        cosines = (inner + (gain * across)[:, None] * along) / size
        scores: Tensor = 1 - cosines.amax(1)
        return scores


def screen_of(
    library: SkillLibrary,
    foreign: FeatureStatistics,
    *,
    share: float = 0.02,
    shrinkage: float = 0.1,
    shared: SharedScatter | None = None,
) -> Screen:
    """The screen of a library's skills, its line drawn by their own stored rows.

    Args:
        library: the skills; of none, everything is strange.
        foreign: statistics of rows of no skill: the prompts that the base writes by itself.
        share: of the skills' own rows that may be called strange, in [0, 1).
        shrinkage: of the correlation within skills towards the identity, in (0, 1].
        shared: the scatter of the skills and of `foreign`, where it is there already.

    Raises:
        ConfigError: a share out of range.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"a share of {share} is out of range; give one from 0 to below 1")
    skills = library.skills
    if shared is None:
        parts = [foreign, *(skill.statistics for skill in skills)]
        shared = SharedScatter.of(parts, foreign.d_features)
    scale = shared.std()
    correlation = shared.correlation(shrinkage, torch.float32)
    screen = Screen(
        skill_ids=tuple(skill.skill_id for skill in skills),
        directions=torch.zeros(0, foreign.d_features),
        counts=tuple(skill.statistics.count for skill in skills),
        origin=foreign.mean,
        scale=scale,
        factor=torch.linalg.cholesky(correlation),
        pull=(1 - shrinkage) / shared.degrees_of_freedom,
        threshold=2.0,
    )
    if not skills:
        return screen
    means = stack_means([skill.statistics for skill in skills])
    screen = replace(screen, directions=screen.whiten(means))
    limit = max(1, MOST_ROWS // len(skills))
    # Stored in the order of their keys' hashes, so that the first rows are a sample.
    scores = [
        screen.left_out(skill.features[:limit], index)
        for index, skill in enumerate(skills)
        if skill.statistics.count > 1
    ]
    return replace(screen, threshold=_line(scores, share)) if scores else screen


def _line(scores: Sequence[Float[Tensor, " _"]], share: float) -> float:
    """The lowest score that at most a share of the rows are above."""
    ranked = torch.cat(list(scores)).double().sort(descending=True).values
    return float(ranked[int(share * len(ranked))])
