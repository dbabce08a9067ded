"""Novelty tests and ways to decide by them, on arrivals whose features are there already.

Each test measures an arrival once, against a library that is what it should be; every way to decide
goes by that measurement. Knows features and the truth; compares nothing and writes nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.evaluation.continual.streams import Stream
from dylora_moe.foundation.statistics import FeatureStatistics, SharedScatter
from dylora_moe.records import Interval
from dylora_moe.skills.classifier import ClassifierTwoSample
from dylora_moe.skills.cosine import Cosine, mean_interval
from dylora_moe.skills.library import Skill, SkillLibrary
from dylora_moe.skills.mahalanobis import Mahalanobis
from dylora_moe.skills.novelty import Measurement, side_of
from dylora_moe.skills.projection import ContrastiveProjection
from dylora_moe.skills.screening import screen_of

VISIT, BATCH = 160, 60
FEWEST = 16
"""Rows of a part that gets a verdict: what more of a known skill takes."""
_STRANGE = 0.05
"""Of a skill's own rows, the share that the screen may call strange; as by default."""
Measure = Callable[[Tensor, SkillLibrary], Measurement]


@dataclass(frozen=True, eq=False)
class Arrival:
    """Rows of one skill that came in one batch."""

    skill: str
    rows: Float[Tensor, "n d"]
    batch: int
    visit_returns: bool
    new: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """What a test measures of an arrival; nothing where there was no skill yet."""

    apart: Interval | None
    skills: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to decide.

    Attributes:
        name, group: for people.
        test: what measures, a key of `TESTS`.
        threshold: what is apart by more is new, in an empty pool.
        by: whether the estimate decides, or the interval, which may be unsure.
        delta: the threshold rises by this times log(1 + skills).
        share: of what was before in the moving average of the measure; the average starts anew
            with every new skill.
    """

    name: str
    group: str
    test: str = "classifier"
    threshold: float = 0.80
    by: Literal["interval", "estimate"] = "interval"
    delta: float = 0.0
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict and the truth.

    Attributes:
        place: seed, stream and number of the arrival.
        skill: whose rows it has.
        new: whether the skill is.
        said: whether it was called so; None where unsure.
        value: what the test measured.
        seconds: it took.
        returned: whether it came in the visit of a skill that returns.
    """

    place: tuple[int, str, int]
    skill: str
    new: bool
    said: bool | None
    value: float
    seconds: float
    returned: bool

    @property
    def wrong(self) -> float:
        """1 where another thing was said than what is so; unsure is not wrong."""
        return float(self.said is not None and self.said != self.new)

    def of(self, kind: str) -> bool:
        """Whether it is of the stream; the hard one is the returning one before the return."""
        if kind == "hard":
            return self.place[1] == "returning" and not self.returned
        return self.place[1] == kind


def arrivals_of(stream: Stream, rows: Mapping[str, Float[Tensor, " d"]]) -> list[Arrival]:
    """The batches, parted by skill; parts of few rows get no verdict and are left out."""
    found, known = [], set[str]()
    owner = stream.truth.skill_of
    returns = min(stream.truth.returns, default=len(stream.truth.keys))
    for number, batch in enumerate(stream.batches):
        for skill in dict.fromkeys(owner[row.key] for row in batch):
            part = [rows[row.key] for row in batch if owner[row.key] == skill]
            if len(part) >= FEWEST:
                again = stream.starts[number] >= returns
                found.append(Arrival(skill, torch.stack(part), number, again, skill not in known))
                known.add(skill)
    return found


def measured(
    test: str, arrivals: Sequence[Arrival], own: Float[Tensor, "m d"], seed: int
) -> list[Seen]:
    """A test's measurement of each arrival, the library being what it should be.

    Args:
        test: a key of `TESTS`.
        arrivals: in their order.
        own: tap features of the base's own prompts.
        seed: of the test.
    """
    measure, library, found = TESTS[test](own, seed), SkillLibrary(), []
    for one in arrivals:
        start = time.perf_counter()
        apart = measure(one.rows, library).separability if len(library) else None
        found.append(Seen(apart, len(library), time.perf_counter() - start))
        if one.new:
            library.add_skill(one.skill, one.rows, one.skill)
        else:
            library.extend(one.skill, one.rows)
    return found


def judged(
    variant: Variant, arrivals: Sequence[Arrival], seen: Sequence[Seen], kind: str, seed: int
) -> list[Judged]:
    """A variant's verdict on each arrival but those that come to an empty library."""
    found: list[Judged] = []
    before: Interval | None = None
    skills = 0
    for number, (one, what) in enumerate(zip(arrivals, seen, strict=True)):
        if what.apart is None:
            continue
        apart = what.apart
        if before is not None and what.skills == skills and variant.share:
            ends = (apart.value, apart.low, apart.high)
            share = variant.share
            apart = Interval(*(share * before.value + (1 - share) * end for end in ends))
        before, skills = apart, what.skills
        line = variant.threshold + variant.delta * math.log1p(what.skills)
        said = side_of(apart, line) if variant.by == "interval" else apart.value > line
        found.append(
            Judged((seed, kind, number), one.skill, one.new, said, apart.value, what.seconds,
                   one.visit_returns)
        )  # fmt: skip
    return found


def _classifier(own: Tensor, seed: int) -> Measure:
    return ClassifierTwoSample(seed=seed).measure


def _mahalanobis(own: Tensor, seed: int) -> Measure:
    return Mahalanobis().measure


def _cosine(own: Tensor, seed: int) -> Measure:
    return Cosine().measure


def _projection(own: Tensor, seed: int) -> Measure:
    projection = ContrastiveProjection(own, seed)

    def measure(rows: Tensor, library: SkillLibrary) -> Measurement:
        inside = projection.of(library)
        return Cosine().measure(inside.head(rows), inside.library)

    return measure


def _examples(own: Tensor, seed: int) -> Measure:
    """Each row by itself: the share of rows that the screen calls strange, its interval over parts
    of the arrival as that of the cosine rule."""
    foreign = FeatureStatistics.from_features(own)
    shared, held = SharedScatter.of([foreign], own.shape[1]), dict[str, Skill]()

    def measure(rows: Tensor, library: SkillLibrary) -> Measurement:
        for skill in library.skills:
            # A skill is never changed, only replaced.
            if held.get(skill.skill_id) is not skill:
                if skill.skill_id in held:
                    shared.subtract(held[skill.skill_id].statistics)
                shared.add(skill.statistics)
                held[skill.skill_id] = skill
        screen = screen_of(library, foreign, share=_STRANGE, shared=shared)
        strange = screen(rows).strange.float()
        parts = [float(part.mean()) for part in strange.tensor_split(4)]
        apart = replace(mean_interval(parts), value=float(strange.mean()))
        return Measurement(apart, (), len(rows))

    return measure


TESTS: Mapping[str, Callable[[Tensor, int], Measure]] = {
    "classifier": _classifier,
    "mahalanobis": _mahalanobis,
    "cosine": _cosine,
    "projection": _projection,
    "examples": _examples,
    "gradient mahalanobis": _mahalanobis,
    "gradient classifier": _classifier,
}
"""Tests by their names, each from the base's own prompts and a seed; those whose names begin with
`gradient` compare gradients of answers."""

VARIANTS = (
    Variant("as it is: classifier, AUC 0.80, interval", "default"),
    Variant("the estimate alone", "deciding", by="estimate"),
    Variant("AUC 0.70", "deciding", threshold=0.70),
    Variant("AUC 0.90", "deciding", threshold=0.90),
    Variant("AUC 0.90, the estimate alone", "deciding", threshold=0.90, by="estimate"),
    Variant("AUC 0.80 + 0.02 log(1 + skills)", "deciding", delta=0.02),
    Variant("AUC 0.80 + 0.05 log(1 + skills)", "deciding", delta=0.05),
    Variant("moving average, 0.3", "deciding", share=0.3),
    Variant("moving average, 0.5", "deciding", share=0.5),
    Variant("moving average, 0.5, the estimate alone", "deciding", share=0.5, by="estimate"),
    Variant("each row, 5% strange, most of them", "measuring", "examples", 0.5),
    Variant("the same, the estimate alone", "measuring", "examples", 0.5, "estimate"),
    Variant("Mahalanobis of features, 0.80", "measuring", "mahalanobis"),
    Variant("Mahalanobis of features, 0.70", "measuring", "mahalanobis", 0.70),
    Variant("contrastive projection, cosine 0.95", "measuring", "projection", 0.05),
    Variant("contrastive projection, cosine 0.80", "measuring", "projection", 0.20),
    Variant("cosine 0.95 of tap features", "measuring", "cosine", 0.05),
    Variant("cosine 0.95 - 0.05 log(1 + skills)", "measuring", "cosine", 0.05, delta=0.05),
    Variant("Mahalanobis of gradients, 0.80", "measuring", "gradient mahalanobis"),
    Variant("classifier of gradients, AUC 0.80", "measuring", "gradient classifier"),
)
"""Every choice that is compared; the first is what the product does."""
