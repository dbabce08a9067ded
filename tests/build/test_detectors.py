"""The novelty test that the settings name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.build.recipe import make_recipe
from dylora_moe.config import NoveltySettings
from dylora_moe.errors import ConfigError
from dylora_moe.records import Arrival, Interval
from dylora_moe.skills.novelty import NoveltyDetector
from tests import pools
from tests.pools import LETTERS, SIGNS, learn, rows, settings

DETECTORS = {
    "classifier": ("tap", "classifier", 0.80),
    "cosine-maximum": ("last-layer", "cosine-maximum", 0.15),
    "cosine-median": ("last-layer", "cosine-median", 0.15),
    "projection": ("tap", "projection", 0.05),
    "entropy": ("tap", "router-entropy", 0.5),
    "mahalanobis": ("tap", "mahalanobis", 0.80),
    "gradient-mahalanobis": ("gradient", "gradient-mahalanobis", 0.80),
}
AVERAGED = {"detector": "cosine-maximum", "smoothing": 0.6}


def detector(pool: Pool, **novelty: Any) -> NoveltyDetector:
    return make_recipe(settings(novelty=novelty)).detector(pool.live, pool.registry)


def planned(pool: Pool, arrival: str, seed: int, **novelty: Any) -> Interval:
    arrivals = [Arrival("next", rows(arrival, 64, seed))]
    (plan,) = pool.plan_arrivals(arrivals, settings=settings(novelty=novelty))
    assert plan.verdict.separability is not None
    return plan.verdict.separability


def test_every_detector_that_can_be_named_is_listed_here() -> None:
    known = NoveltySettings.model_json_schema()["properties"]["detector"]["enum"]
    assert set(known) == set(DETECTORS)


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_is_made_and_gives_a_verdict(name: str, taught: Pool) -> None:
    representation, called, threshold = DETECTORS[name]
    chosen = settings(novelty={"detector": name, "badly": 0.7, "min_examples": 9, "min_tokens": 8})
    recipe = make_recipe(chosen)
    assert recipe.representation == representation
    made = recipe.detector(taught.live, taught.registry)
    assert (made.name, made.threshold) == (called, pytest.approx(threshold))
    assert (made.limits.fit, made.limits.samples, made.limits.tokens) == (0.7, 9, 8)
    (plan,) = taught.plan_arrivals([Arrival("signs", rows(SIGNS, 64, 5))], settings=chosen)
    assert plan.verdict.detector == called
    assert plan.verdict.separability is not None
    assert len(plan.verdict.nearest) == 2


@pytest.mark.parametrize("name", DETECTORS)
def test_a_threshold_is_the_persons(name: str, taught: Pool) -> None:
    found = detector(taught, detector=name, threshold=0.6).threshold
    similarity = name.startswith("cosine") or name == "projection"
    assert found == pytest.approx(0.4 if similarity else 0.6)


@pytest.mark.parametrize("name", ["mahalanobis", "gradient-mahalanobis"])
def test_distances_know_new_rows_of_a_skill_from_rows_of_none(name: str, taught: Pool) -> None:
    assert planned(taught, SIGNS, 5, detector=name).low > 0.8
    assert planned(taught, LETTERS, 13, detector=name).high < 0.8


@pytest.mark.parametrize("name", ["cosine-maximum", "cosine-median", "projection"])
def test_the_adaptive_threshold_counts_the_pools_experts(name: str, taught: Pool) -> None:
    fixed = detector(taught, detector=name)
    adaptive = detector(taught, detector=name, delta=0.1)
    assert adaptive.threshold == pytest.approx(fixed.threshold + 0.1 * math.log(3))


def test_a_projection_is_trained_once_for_arrivals_into_the_same_pool(
    taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dylora_moe.skills import projection

    trained = []
    made = projection.ContrastiveProjection._trained

    def noted(self: Any, skills: Any) -> Any:
        trained.append(self)
        return made(self, skills)

    monkeypatch.setattr(projection.ContrastiveProjection, "_trained", noted)
    arrivals = [Arrival(str(seed), rows(SIGNS, 64, seed)) for seed in range(3)]
    plans = taught.plan_arrivals(arrivals, settings=settings(novelty={"detector": "projection"}))
    assert len(plans) == 3
    assert len(trained) == 1


def test_an_average_goes_on_in_a_pool_that_was_opened_again(taught: Pool) -> None:
    chosen = settings(novelty=AVERAGED)
    before = [learn(taught, f"more {seed}", rows(LETTERS, 64, seed), settings=chosen).verdict
              for seed in (13, 14)]  # fmt: skip
    assert {verdict.detector for verdict in before} == {"cosine-maximum-smoothed"}
    assert all(verdict.separability is not None for verdict in before)
    last = before[-1].separability
    assert last is not None
    now = planned(taught, SIGNS, 5, detector="cosine-maximum")
    expected = 0.6 * last.value + 0.4 * now.value
    assert planned(taught, SIGNS, 5, **AVERAGED).value == pytest.approx(expected, abs=1e-6)
    taught.close()
    with Pool.open(taught.path, device="cpu", dtype="fp32") as opened:
        assert planned(opened, SIGNS, 5, **AVERAGED).value == pytest.approx(expected, abs=1e-6)
        assert abs(expected - now.value) > 1e-3


def test_an_average_starts_anew_with_a_new_expert(taught: Pool) -> None:
    chosen = settings(novelty=AVERAGED)
    learn(taught, "more", rows(LETTERS, 64, 13), settings=chosen)
    assert planned(taught, SIGNS, 5, **AVERAGED) != planned(taught, SIGNS, 5, **_plain())
    learn(taught, "signs", rows(SIGNS, 64, 5), settings=chosen, as_new=True)
    assert planned(taught, SIGNS, 6, **AVERAGED) == planned(taught, SIGNS, 6, **_plain())


def _plain() -> dict[str, Any]:
    return {**AVERAGED, "smoothing": 0.0}


@pytest.mark.parametrize("name", ["classifier", "entropy", "mahalanobis", "gradient-mahalanobis"])
@pytest.mark.parametrize("key", ["delta", "smoothing"])
def test_what_is_said_of_similarities_is_refused_where_none_are_compared(
    key: str, name: str
) -> None:
    with pytest.raises(ConfigError, match=rf"novelty\.{key}: .*{name} compares no similarities"):
        pools.settings(novelty={"detector": name, key: 0.2})
    pools.settings(novelty={"detector": name, key: 0.0})
    pools.settings(novelty={"detector": "projection", key: 0.2})
