"""The table of verdicts, its corners and its edges, and the detectors in front of it."""

from __future__ import annotations

import math

import pytest
import torch

from dylora_moe.errors import ConfigError
from dylora_moe.records import Interval
from dylora_moe.skills.classifier import ClassifierTwoSample
from dylora_moe.skills.cosine import Cosine, mean_interval
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.mahalanobis import Mahalanobis
from dylora_moe.skills.novelty import Limits, NoveltyDetector, decide
from dylora_moe.skills.projection import ContrastiveProjection, ProjectedCosine
from dylora_moe.skills.router_entropy import RouterEntropy
from dylora_moe.skills.smoothing import Smoothed

from .builders import cluster, library

APART, CLOSE, STRADDLING = (
    Interval(0.9, 0.85, 0.94),
    Interval(0.5, 0.4, 0.6),
    Interval(0.8, 0.7, 0.9),
)
BADLY, WELL, IN_DOUBT = Interval(0.9, 0.7, 1.1), Interval(0.1, 0.0, 0.2), Interval(0.5, 0.3, 0.7)
SURELY_APART = Interval(0.99, 0.96, 1.0)


@pytest.mark.parametrize(
    ("separability", "fit", "name"),
    [
        (APART, BADLY, "novel"),
        (APART, WELL, "covered"),
        (CLOSE, BADLY, "revised"),
        (CLOSE, WELL, "known"),
        (STRADDLING, BADLY, "unsure"),
        (STRADDLING, WELL, "unsure"),
        (STRADDLING, None, "unsure"),
        (APART, IN_DOUBT, "unsure"),
        (SURELY_APART, IN_DOUBT, "novel"),
        (SURELY_APART, WELL, "covered"),
        (CLOSE, IN_DOUBT, "known"),
        (APART, None, "novel"),
        (CLOSE, None, "known"),
        (None, None, "novel"),
    ],
)
def test_the_table(separability: Interval | None, fit: Interval | None, name: str) -> None:
    verdict = decide(separability, fit, samples=64, tokens=1000)
    assert verdict.name == name
    assert verdict.separability == separability
    assert verdict.fit == fit
    assert verdict.reason


@pytest.mark.parametrize(("samples", "tokens"), [(31, 10_000), (64, 255)])
@pytest.mark.parametrize("separability", [APART, STRADDLING, None])
@pytest.mark.parametrize("fit", [BADLY, WELL, None])
def test_too_little_is_unsure_unless_it_cannot_be_told_from_a_skill(
    separability: Interval | None, fit: Interval | None, samples: int, tokens: int
) -> None:
    assert decide(separability, fit, samples=samples, tokens=tokens).name == "unsure"


def test_no_test_judges_a_single_row() -> None:
    assert Limits(samples=3, tokens=9).for_more == Limits(samples=2, tokens=4)


@pytest.mark.parametrize(
    ("samples", "tokens", "name"),
    [(16, 128, "known"), (31, 10_000, "known"), (64, 255, "known"), (15, 300, "unsure"),
     (40, 127, "unsure"), (16, None, "known")],
)  # fmt: skip
@pytest.mark.parametrize("fit", [WELL, None])
def test_half_as_much_is_enough_for_more_of_a_skill(
    fit: Interval | None, samples: int, tokens: int | None, name: str
) -> None:
    assert decide(CLOSE, fit, samples=samples, tokens=tokens).name == name


@pytest.mark.parametrize("fit", [BADLY, IN_DOUBT])
def test_few_rows_that_may_have_other_answers_are_unsure(fit: Interval) -> None:
    assert decide(CLOSE, fit, samples=31, tokens=1000).name == "unsure"


def test_an_end_on_the_threshold_straddles_it() -> None:
    for interval in (Interval(0.85, 0.8, 0.9), Interval(0.75, 0.7, 0.8)):
        assert decide(interval, WELL, 0.8, samples=64).name == "unsure"


def test_the_thresholds_are_the_callers() -> None:
    assert decide(CLOSE, BADLY, 0.3, samples=64).name == "novel"
    assert decide(APART, BADLY, samples=64, limits=Limits(fit=2.0)).name == "covered"
    assert decide(APART, BADLY, samples=5, limits=Limits(samples=4)).name == "novel"
    with pytest.raises(ConfigError):
        Limits(samples=1)


STRANGERS = torch.cat([cluster(500 + index, 1) for index in range(100)])


def entropy_of(features: torch.Tensor) -> torch.Tensor:
    """Stands for a router that is in doubt about skill 7's cluster alone."""
    far = (features - cluster(7).mean(0)).norm(dim=-1) < 8
    return far.float() * 1.5


DETECTORS: list[NoveltyDetector] = [
    ClassifierTwoSample(),
    Cosine(similarity=0.998, mode="maximum"),
    Cosine(similarity=0.9995, delta=0.001, experts=3),
    Smoothed(Cosine(similarity=0.998), 0.1, before=0.0),
    Mahalanobis(),
    ProjectedCosine(Cosine(), ContrastiveProjection(STRANGERS)),
    RouterEntropy(entropy_of),
]


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda d: d.name)
def test_every_detector_names_novel_what_is_new_and_known_what_returns(
    detector: NoveltyDetector,
) -> None:
    pool = library()
    new, returning = cluster(7, 64, seed=5), cluster(1, 64, seed=5)
    assert detector.is_novel(new, pool)
    assert not detector.is_novel(returning, pool)
    measured = detector.measure(returning, pool)
    assert measured.nearest[0][0] == "skill_1"
    assert measured.samples == 64
    verdict = detector.verdict(measured, fit=WELL, tokens=1000)
    assert verdict.name == "known"
    assert verdict.detector == detector.name
    assert verdict.nearest == measured.nearest
    assert detector.verdict(detector.measure(new, pool), fit=WELL).name == "covered"


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda d: d.name)
def test_every_detector_waits_for_enough_examples(detector: NoveltyDetector) -> None:
    for n in (0, 1, 31):
        measured = detector.measure(cluster(7, 31)[:n], library())
        assert detector.verdict(measured).name == "unsure"


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda d: d.name)
def test_for_an_empty_pool_everything_is_novel(detector: NoveltyDetector) -> None:
    assert detector.is_novel(cluster(0, 64), SkillLibrary())


def test_the_median_of_similarities_calls_more_novel_than_the_maximum() -> None:
    pool, rows = library(3), cluster(1, 64, seed=5)
    assert not Cosine(similarity=0.998, mode="maximum").is_novel(rows, pool)
    assert Cosine(similarity=0.998, mode="median").is_novel(rows, pool)


def test_the_cosine_rule_takes_different_skills_for_one_where_the_classifier_does_not() -> None:
    pool, new = library(), cluster(7, 64, seed=5)
    assert Cosine().verdict(Cosine().measure(new, pool)).name == "known"
    assert ClassifierTwoSample().is_novel(new, pool)


def test_the_lowest_separability_counts() -> None:
    measured = ClassifierTwoSample().measure(cluster(1, 64, seed=5), library())
    assert measured.separability is not None
    assert measured.separability.value == min(value for _, value in measured.nearest)
    assert len(measured.nearest) == 3


def test_the_interval_of_a_mean_is_students() -> None:
    interval = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert interval.value == 2.5
    assert interval.high - 2.5 == pytest.approx(3.182 * 1.29099 / 2, rel=0.02)
    assert mean_interval([1.0]).low == -float("inf")


def test_an_adaptive_threshold_falls_with_the_logarithm_of_the_experts() -> None:
    bounds = [1 - Cosine(0.85, delta=0.1, experts=k).threshold for k in (0, 1, 3, 7)]
    assert bounds == pytest.approx([0.85 - 0.1 * step * math.log(2) for step in range(4)])
    assert Cosine(0.85, experts=7).threshold == Cosine(0.85).threshold
    pool, new = library(), cluster(7, 64, seed=5)
    assert Cosine(0.998).is_novel(new, pool)
    assert not Cosine(0.998, delta=0.1, experts=3).is_novel(new, pool)
