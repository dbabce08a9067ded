from __future__ import annotations

import numpy as np
import pytest

from dylora_moe.scoring.bootstrap import Paired, mean_ratio, paired_bootstrap


def test_a_system_against_itself_differs_by_exactly_nothing() -> None:
    scores = np.random.default_rng(0).random(50).tolist()
    found = paired_bootstrap(scores, scores)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    ratio = paired_bootstrap(scores, scores, statistic="ratio")
    assert (ratio.low, ratio.high) == (pytest.approx(1), pytest.approx(1))


def test_pairing_makes_a_constant_difference_certain() -> None:
    scores = np.random.default_rng(0).random(50)
    found = paired_bootstrap((scores + 0.25).tolist(), scores.tolist())
    assert found.low == pytest.approx(0.25)
    assert found.high == pytest.approx(0.25)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        first, second = rng.normal(0.3, 1, 60), rng.normal(0, 1, 60)
        found = paired_bootstrap(first.tolist(), second.tolist(), rounds=400, seed=seed)
        covered += found.low <= 0.3 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval() -> None:
    first, second = [1.0, 2.0, 4.0], [1.0, 1.0, 5.0]
    assert paired_bootstrap(first, second, seed=3) == paired_bootstrap(first, second, seed=3)


def test_weights_make_the_mean_a_mean_over_tokens() -> None:
    found = paired_bootstrap([1.0, 4.0], [1.0, 2.0], weights=[30, 10], statistic="ratio")
    assert found.value == pytest.approx((30 + 40) / (30 + 20))


def test_the_mean_of_ratios_weighs_skills_alike() -> None:
    pairs = [Paired([2.0] * 10, [1.0] * 10), Paired([1.0] * 500, [1.0] * 500)]
    found = mean_ratio(pairs)
    assert (found.value, found.low, found.high) == (1.5, 1.5, 1.5)


def test_unpaired_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="unpaired"):
        paired_bootstrap([1.0], [1.0, 2.0])
