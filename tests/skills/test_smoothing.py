"""Laws of the moving average over arrivals."""

from __future__ import annotations

import pytest

from dylora_moe.records import Interval
from dylora_moe.skills.cosine import Cosine
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.smoothing import Smoothed

from .builders import cluster, library

RULE = Cosine(similarity=0.998)


def measured(share: float, before: float | None, seed: int = 5) -> Interval:
    found = Smoothed(RULE, share, before).measure(cluster(1, 64, seed), library()).separability
    assert found is not None
    return found


def test_with_nothing_before_it_is_the_test_itself() -> None:
    assert measured(0.9, None) == RULE.measure(cluster(1, 64, 5), library()).separability


def test_each_side_has_its_share_and_what_was_before_has_no_width() -> None:
    now = measured(0.9, None)
    found = measured(0.75, 0.4)
    assert found.value == pytest.approx(0.75 * 0.4 + 0.25 * now.value)
    assert found.high - found.low == pytest.approx(0.25 * (now.high - now.low))


def test_handed_on_from_arrival_to_arrival_it_is_the_exponential_average() -> None:
    share, before, expected = 0.6, None, None
    for seed in range(4):
        now = measured(0.0, None, seed).value
        expected = now if expected is None else share * expected + (1 - share) * now
        before = measured(share, before, seed).value
    assert before == pytest.approx(expected)


def test_one_strange_arrival_among_familiar_ones_is_not_yet_novel() -> None:
    new = cluster(7, 64, seed=5)
    assert RULE.is_novel(new, library())
    assert not Smoothed(RULE, 0.95, before=0.0).is_novel(new, library())


def test_name_and_bounds_tell_of_the_test_inside() -> None:
    smoothed = Smoothed(RULE, 0.5)
    assert smoothed.name == "cosine-maximum-smoothed"
    assert (smoothed.threshold, smoothed.limits) == (RULE.threshold, RULE.limits)
    found = Smoothed(RULE, 0.5, 0.9).measure(cluster(1, 64, 5), library())
    assert found.nearest == RULE.measure(cluster(1, 64, 5), library()).nearest


def test_there_is_no_average_of_nothing() -> None:
    assert Smoothed(RULE, 0.5, 0.1).measure(cluster(0, 64), SkillLibrary()).separability is None
