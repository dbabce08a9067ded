"""Novelty by cosine similarity to the skills' means: the usual rule, for comparison.

Knows feature vectors of any kind; meant for mean last-layer states. Mean states of transformers
point the same way, so with the usual thresholds it takes different skills for one.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.records import Interval
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.novelty import Limits, Measurement, NoveltyDetector


@dataclass(frozen=True, slots=True)
class Cosine(NoveltyDetector):
    """Novel where the highest (or the median) similarity to the skills is below a bound.

    The arrival's vector is the mean of the normed rows of each of `batches` parts, normed again;
    the parts give the interval. Separability is 1 - similarity.

    Attributes:
        similarity: the bound in an empty pool.
        mode: `maximum` over the skills, or `median`.
        limits: what an arrival needs to be judged.
        batches: parts of the arrival whose similarities are averaged.
        delta: of the bound that falls as the pool grows, `similarity - delta * log(1 + experts)`.
        experts: in the pool that the test is for; they count where there is a delta.
    """

    similarity: float = 0.85
    mode: Literal["maximum", "median"] = "maximum"
    limits: Limits = field(default_factory=lambda: Limits(settled=2.0))
    batches: int = 4
    delta: float = 0.0
    experts: int = 0

    @property
    def name(self) -> str:
        return f"cosine-{self.mode}"

    @property
    def threshold(self) -> float:
        return 1 - (self.similarity - self.delta * math.log1p(self.experts))

    def measure(self, features: Float[Tensor, "batch d"], library: SkillLibrary) -> Measurement:
        """1 - cosine to each skill, and the interval of their maximum or median over the parts."""
        samples = features.shape[0]
        if samples == 0 or len(library) == 0:
            return Measurement(None, (), samples)
        skills = torch.stack([_direction(s.features.double()) for s in library.skills])
        rows = features.detach().to("cpu").double()
        parts = torch.stack([_direction(p) for p in rows.tensor_split(min(self.batches, samples))])
        table = parts @ skills.T
        ranked = sorted(
            zip((1 - table.mean(0)).tolist(), [s.skill_id for s in library.skills], strict=True)
        )
        return Measurement(
            separability=mean_interval([1 - self._pool(row) for row in table.tolist()]),
            nearest=tuple((skill_id, distance) for distance, skill_id in ranked),
            samples=samples,
        )

    def _pool(self, similarities: list[float]) -> float:
        return max(similarities) if self.mode == "maximum" else statistics.median(similarities)


def _direction(rows: Float[Tensor, "batch d"]) -> Float[Tensor, " d"]:
    """Mean of the normed rows, normed again."""
    mean = torch.nn.functional.normalize(rows, dim=-1).mean(0)
    return torch.nn.functional.normalize(mean, dim=0)


def mean_interval(values: list[float]) -> Interval:
    """Mean of independent parts with its 95% interval (Student's t)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, -float("inf"), float("inf"))
    half = _t(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return Interval(mean, mean - half, mean + half)


def _t(freedom: int) -> float:
    """The 97.5% point of Student's t; exact to 1% from 3 degrees of freedom on.

    Source: Abramowitz and Stegun, 26.7.5, and the closed values for 1 and 2.
    """
    if freedom <= 2:
        return (12.706, 4.303)[freedom - 1]
    z = 1.959964
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + (z**3 + z) / (4 * freedom) + second / freedom**2 + third / freedom**3
