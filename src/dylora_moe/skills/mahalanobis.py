"""Novelty by Mahalanobis distance: how far an arrival's rows lie from a skill's mean, held against
how far the skill's own rows do.

Knows stored rows of features of any kind; knows no model. The distance by itself cannot be compared
across skills or arrivals: its size follows the lengths of the texts, and the rows that a covariance
was taken from lie nearer to it than any others. So each of the skill's own rows is left out of mean
and covariance in its turn, and the AUC between both sides' distances is the separability: 0.5 where
the arrival's rows lie as the skill's own do, 1 where all of them lie farther out.

Source: Lee, Lee, Lee and Shin (2018), "A simple unified framework for detecting
out-of-distribution samples and adversarial attacks", eq. 1 and 2: a mean for each class, one
covariance within classes. The interval is that of `skills.separability.auc_interval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.foundation.statistics import double
from dylora_moe.scoring.detection import auroc
from dylora_moe.skills.library import Skill, SkillLibrary
from dylora_moe.skills.novelty import Limits, Measurement, NoveltyDetector
from dylora_moe.skills.separability import auc_interval
from dylora_moe.skills.within import Within

PER_SKILL = 128
"""Rows of a skill that an arrival is compared with."""
MOST_ROWS = 512
"""Rows that the covariance is taken from, those of all skills together."""


@dataclass(frozen=True, slots=True)
class Mahalanobis(NoveltyDetector):
    """AUC of an arrival's distances from the nearest skill above that skill's own.

    The nearest is the one with the smallest mean distance. Rows that lie within a wide skill pass
    for its own, whatever they are about: a distance has no direction.

    Attributes:
        threshold: on the AUC.
        limits: what an arrival needs to be judged.
        candidates: skills that are compared with, those of the nearest means.
        shrinkage: of the covariance towards the identity, in (0, 1).
        name: what the verdict says it came from; it tells of which features.
    """

    threshold: float = 0.80
    limits: Limits = field(default_factory=Limits)
    candidates: int = 3
    shrinkage: float = 0.1
    name: str = "mahalanobis"

    def measure(self, features: Float[Tensor, "batch d"], library: SkillLibrary) -> Measurement:
        """AUC against each candidate, nearest first; the same in any order of the rows."""
        samples = features.shape[0]
        if samples < 2:
            return Measurement(None, (), samples)
        nearest = [library[skill_id] for skill_id, _ in library.nearest(features, self.candidates)]
        tested = [skill for skill in nearest if len(skill.features) >= 2]
        if not tested:
            return Measurement(None, (), samples)
        rows = double(features)
        groups = [double(skill.features[:PER_SKILL]) for skill in tested]
        groups += _others(library, tested, MOST_ROWS - sum(map(len, groups)))
        within = WithinCovariance.of(groups, _spread([*groups, rows]), self.shrinkage)
        found = []
        for index, skill in enumerate(tested):
            distances, own = within.squared(rows, index), within.left_out(index)
            told = auc_interval(auroc(distances.tolist(), own.tolist()), samples, len(own))
            found.append((float(distances.mean()), skill.skill_id, told))
        # By distance, not by AUC: rows of any kind lie within the widest skill's own distances.
        found.sort(key=lambda each: each[:2])
        ranked = tuple((skill_id, told.value) for _, skill_id, told in found)
        return Measurement(found[0][2], ranked, samples)


@dataclass(frozen=True, eq=False)
class WithinCovariance:
    """The covariance of rows about the means of their groups, shrunk towards the identity.

    Distances are given under `A` of `skills.within`, since a factor is the same for all of them.
    Without the row x of a group of g, the group's mean moves by `-x / (g - 1)`, and X^T X loses
    `a x x^T` with `a = g / (g - 1)`. So by Sherman and Morrison's formula the square of that row's
    distance, left out, is `a^2 h / (1 - a h)`, where `h = x^T A^-1 x` is its leverage.

    Attributes:
        means: of the groups, float64.
        std: what rows are standardised by, float64.
        within: the scatter of the rows about them.
        sizes: rows of each group.
    """

    means: Float[Tensor, "k d"]
    std: Float[Tensor, " d"]
    within: Within
    sizes: tuple[int, ...]

    @classmethod
    def of(
        cls, groups: Sequence[Float[Tensor, "_ d"]], std: Float[Tensor, " d"], shrinkage: float
    ) -> WithinCovariance:
        """Of float64 rows in groups, one of which has two rows or more."""
        means = torch.stack([group.mean(0) for group in groups])
        centred = [group - mean for group, mean in zip(groups, means, strict=True)]
        sizes = tuple(len(group) for group in groups)
        within = Within.of(torch.cat(centred) / std, sum(sizes) - len(sizes), shrinkage)
        return cls(means, std, within, sizes)

    def squared(self, points: Float[Tensor, "n d"], group: int) -> Float[Tensor, " n"]:
        """Squares of float64 points' distances from the mean of a group."""
        apart = ((points - self.means[group]) / self.std).float()
        return self.within.squared(apart) / self.within.ridge

    def left_out(self, group: int) -> Float[Tensor, " rows"]:
        """Squares of a group's own rows' distances, each without its part in mean and covariance.

        The group has two rows or more.
        """
        start, size = sum(self.sizes[:group]), self.sizes[group]
        inside, moved = self.within.leverages[start : start + size], size / (size - 1)
        squares: Tensor = moved**2 * inside / (1 - moved * inside)
        return squares


def _others(library: SkillLibrary, tested: Sequence[Skill], most: int) -> list[Tensor]:
    """Rows of the other skills, as many of each, for the covariance; of too many skills, some.

    The first stored rows of a skill are taken: they are in the order of their keys' hashes.
    """
    others = [s for s in library.skills if s not in tested and len(s.features) >= 2]
    share = max(2, most // max(1, len(others)))
    step = max(1, -(-len(others) * share // max(1, most)))
    return [double(skill.features[:share]) for skill in others[::step]]


def _spread(groups: Sequence[Float[Tensor, "_ d"]]) -> Float[Tensor, " d"]:
    """Standard deviation within the groups; 1 where a feature never varied.

    The arrival is one of them: so its rows have the same part in the scale as the skills' rows.
    """
    squares = torch.stack([(group - group.mean(0)).square().sum(0) for group in groups])
    variance = squares.sum(0) / max(1, sum(map(len, groups)) - len(groups))
    return torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()
