"""Novelty detectors on a stream's stored features: what each would have grown, and where it would
have seen a switch. No model runs and nothing is trained, so all of them see the same rows.

A detector sees batch after batch. One that it calls new becomes a skill of its library, any other
joins the nearest skill. It is taken at its word: the point estimate against the threshold, without
the interval that lets a pool wait for more rows, and without the fit of an expert, which only a
pool with experts can measure. Knows features and the truth of a stream; loads nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from jaxtyping import Float
from torch import Tensor

from dylora_moe.errors import DataError
from dylora_moe.evaluation.continual.streams import Stream
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.lifecycle.recipe import Representation
from dylora_moe.routing.fit import fit_correction
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.scoring.borders import match_borders
from dylora_moe.skills.classifier import ClassifierTwoSample
from dylora_moe.skills.cosine import Cosine
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.mahalanobis import Mahalanobis
from dylora_moe.skills.novelty import NoveltyDetector
from dylora_moe.skills.projection import ContrastiveProjection, ProjectedCosine
from dylora_moe.skills.router_entropy import RouterEntropy

Rule = Callable[[SkillLibrary], NoveltyDetector]
"""The detector for a library as it stands: some go by its size or are fitted on it."""

TOLERANCE = 1
"""Batches behind a border in which it still counts as found."""

OURS = "classifier"
"""The detector that a pool uses by itself."""


@dataclass(frozen=True, slots=True)
class Borders:
    """Of the stream's switches, in batches; None where there is nothing to take it of."""

    precision: float | None
    recall: float | None
    f1: float | None
    delay: float | None


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What a detector made of a stream.

    Attributes:
        detector: its name.
        stream: kind of the stream.
        experts: how many it grew.
        true_skills: how many there are.
        again: of these experts, those for a skill that had one already.
        returned: of those again, the ones in a visit of a skill that comes back; None where the
            stream has no visits.
        borders: where it took one batch for another skill's than the batch before; None where the
            stream has no visits.
        seconds: of all its decisions together.
        skipped: why it could not be replayed; empty where it was, and all figures are 0 or None
            where it was not.
    """

    detector: str
    stream: str
    experts: int
    true_skills: int
    again: int
    returned: int | None
    borders: Borders | None
    seconds: float
    skipped: str = ""

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def replay(
    detector: Rule,
    stream: Stream,
    features: Float[Tensor, "n d"],
    *,
    name: str = "",
    tolerance: int = TOLERANCE,
    early: int | None = None,
) -> ReplayResult:
    """Lets a detector see a stream.

    A batch is of the skill that most of its rows are of, in the truth that the detector never sees.

    Args:
        detector: gives the test for a library.
        stream: with the truth.
        features: of each row of the stream, in its order; what the detector compares.
        name: of the detector; its own where empty.
        tolerance: batches behind a border in which a detection counts.
        early: batches before it; None for the mixed zone of a blurred stream, else 0.

    Raises:
        DataError: not one row of features for each of the stream.
    """
    truth = stream.truth
    if len(features) != len(truth.keys):
        raise DataError(
            f"{len(features)} rows of features for a stream of {len(truth.keys)}; hand in one each"
        )
    library, placed, grown, again = SkillLibrary(), [], set[str](), []
    start, first = time.perf_counter(), 0
    for number, batch in enumerate(stream.batches):
        rows = features[first : first + len(batch)]
        skills = Counter(truth.skills[first : first + len(batch)])
        mostly = min(skills, key=lambda skill: (-skills[skill], skill))
        first += len(batch)
        test = detector(library)
        name = name or test.name
        measured = test.measure(rows, library)
        apart = measured.separability
        if apart is None or apart.value > test.threshold:
            placed.append(f"skill_{number}")
            library.add_skill(placed[-1], rows, placed[-1])
            again += [number] if mostly in grown else []
            grown.add(mostly)
        else:
            placed.append(measured.nearest[0][0])
            library.extend(placed[-1], rows)
    return ReplayResult(
        detector=name,
        stream=stream.kind,
        experts=len(library),
        true_skills=len(set(truth.skills)),
        again=len(again),
        returned=_returned(stream, again) if truth.visits else None,
        borders=_borders(stream, placed, tolerance, early) if truth.visits else None,
        seconds=time.perf_counter() - start,
    )


def _returned(stream: Stream, again: list[int]) -> int:
    visits = [visit for visit in stream.truth.visits if visit.start in stream.truth.returns]
    inside = [
        number
        for number in again
        if any(
            stream.batch_of(visit.start) <= number <= stream.batch_of(visit.stop - 1)
            for visit in visits
        )
    ]
    return len(inside)


def _borders(stream: Stream, placed: list[str], tolerance: int, early: int | None) -> Borders:
    detected = [n for n in range(1, len(placed)) if placed[n] != placed[n - 1]]
    if early is None:
        early = _mixed_batches(stream)
    found = match_borders(stream.border_batches, detected, tolerance=tolerance, early=early)
    return Borders(found.precision, found.recall, found.f1, found.mean_delay)


def _mixed_batches(stream: Stream) -> int:
    """Batches before a blurred border that already hold rows of the next skill: of the quarter of a
    visit that `streams.blurred` mixes by default."""
    if stream.kind != "blurred":
        return 0
    visit = stream.truth.visits[0]
    near = (visit.stop - visit.start) // 4
    return -(-near // len(stream.batches[0]))


@dataclass(frozen=True, slots=True)
class Replayed:
    """A detector of the catalogue.

    Attributes:
        name: in the results.
        title: what it does, for a reader.
        compares: what features of the rows it needs.
        made: gives the rule from the tap features of the base's own prompts and a seed.
    """

    name: str
    title: str
    compares: Representation
    made: Callable[[Float[Tensor, "m d"], int], Rule]


def _fixed(test: NoveltyDetector) -> Callable[[Tensor, int], Rule]:
    return lambda own, seed: lambda library: test


def _adaptive(own: Tensor, seed: int) -> Rule:
    return lambda library: Cosine(0.95, delta=0.05, experts=len(library))


def _projection(own: Tensor, seed: int) -> Rule:
    test = ProjectedCosine(Cosine(0.95), ContrastiveProjection(own, seed))
    return lambda library: test


@dataclass(frozen=True)
class _State:
    """A library by its skills and the order of magnitude of their rows."""

    magnitudes: tuple[tuple[str, int], ...]
    library: SkillLibrary = field(compare=False)

    @classmethod
    def of(cls, library: SkillLibrary) -> _State:
        sizes = ((skill.skill_id, skill.statistics.count.bit_length()) for skill in library.skills)
        return cls(tuple(sizes), library)


def _entropy(own: Tensor, seed: int) -> Rule:
    """The closed form's router on what the library holds; fitted anew when a skill comes or the
    rows of one have doubled, since every fit takes seconds."""
    background = FeatureStatistics.from_features(own)

    @lru_cache(maxsize=1)
    def fitted(state: _State) -> NoveltyDetector:
        library = state.library
        router = DynamicHybridRouter(own.shape[1])
        router.set_none(background)
        for skill in library.skills:
            router.add_expert(skill.skill_id, skill.expert_id, skill.statistics)
        if len(library):
            stored = {skill.skill_id: skill.features for skill in library.skills}
            fit_correction(router, stored, own, steps=0)
        return RouterEntropy(lambda features: router(features).entropy)

    return lambda library: fitted(_State.of(library))


def _classifier(own: Tensor, seed: int) -> Rule:
    return lambda library: ClassifierTwoSample(seed=seed)


DETECTORS: Mapping[str, Replayed] = {
    one.name: one
    for one in (
        Replayed(OURS, "classifier two-sample test, AUC 0.80 (ours)", "tap", _classifier),
        Replayed("cosine-0.85", "cosine, maximum, 0.85", "last-layer", _fixed(Cosine(0.85))),
        Replayed("cosine-0.75", "cosine, maximum, 0.75", "last-layer", _fixed(Cosine(0.75))),
        Replayed(
            "cosine-median", "cosine, median, 0.85", "last-layer", _fixed(Cosine(0.85, "median"))
        ),
        Replayed("cosine-adaptive", "cosine, 0.95 - 0.05 log(1 + k)", "last-layer", _adaptive),
        Replayed("entropy", "the router's entropy, 0.5 nats", "tap", _entropy),
        Replayed("mahalanobis", "Mahalanobis of features, 0.80", "tap", _fixed(Mahalanobis())),
        Replayed(
            "gradient-mahalanobis", "Mahalanobis of gradients, 0.80", "gradient",
            _fixed(Mahalanobis(name="gradient-mahalanobis")),
        ),
        Replayed("projection", "cosine in a learned projection, 0.95", "tap", _projection),
    )
}  # fmt: skip
"""Every detector by its name, ours first."""


def replay_all(
    stream: Stream,
    features: Mapping[Representation, Float[Tensor, "n _"]],
    own: Float[Tensor, "m d"],
    *,
    seed: int = 0,
) -> tuple[ReplayResult, ...]:
    """Every detector on one stream; those whose features are not there are named with the reason.

    Args:
        stream: with the truth.
        features: of each row by what they are.
        own: tap features of the base's own prompts.
        seed: of the detectors that draw.

    Raises:
        DataError: as `replay`.
    """
    found = []
    for one in DETECTORS.values():
        rows = features.get(one.compares)
        if rows is None:
            why = f"no {one.compares} features of the stream's rows are stored"
            skills = len(set(stream.truth.skills))
            found.append(ReplayResult(one.name, stream.kind, 0, skills, 0, None, None, 0.0, why))
        else:
            found.append(replay(one.made(own, seed), stream, rows, name=one.name))
    return tuple(found)
