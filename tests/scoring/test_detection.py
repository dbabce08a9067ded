from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dylora_moe.scoring import detection
from dylora_moe.scoring.detection import auroc, auroc_interval

# A loaded machine is no failure.
LAW = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

SCORES = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=12)
"""Few values, so that ties are the rule."""


@LAW
@given(SCORES, SCORES)
def test_it_is_the_share_of_pairs_won_a_tie_counting_half(
    positives: list[float], negatives: list[float]
) -> None:
    won = [(p > n) + (p == n) / 2 for p in positives for n in negatives]
    assert auroc(positives, negatives) == pytest.approx(sum(won) / len(won))


@LAW
@given(SCORES, SCORES)
def test_a_detector_and_its_mirror_add_up_to_one(
    positives: list[float], negatives: list[float]
) -> None:
    assert auroc(positives, negatives) + auroc(negatives, positives) == pytest.approx(1)


@LAW
@given(SCORES, SCORES)
def test_only_the_order_of_scores_counts(positives: list[float], negatives: list[float]) -> None:
    bent = auroc([np.exp(s) for s in positives], [np.exp(s) for s in negatives])
    assert bent == auroc(positives, negatives)


def test_a_perfect_detector_has_one_and_a_constant_one_half() -> None:
    assert auroc([2.0, np.inf], [1.0, -np.inf]) == 1
    assert auroc([3.0] * 4, [3.0] * 9) == 0.5
    found = auroc_interval([2.0, 3.0], [0.0, 1.0])
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_shuffled_scores_are_near_one_half_and_the_interval_holds_it() -> None:
    scores = np.random.default_rng(0).random(400).tolist()
    found = auroc_interval(scores[:150], scores[150:])
    assert found.value == pytest.approx(0.5, abs=0.06)
    assert found.low < 0.5 < found.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    truth, covered = 0.760250, 0  # of two normals one standard deviation apart: Phi(1 / sqrt(2))
    for seed in range(200):
        positives, negatives = rng.normal(1, 1, 40).tolist(), rng.normal(0, 1, 60).tolist()
        found = auroc_interval(positives, negatives, rounds=400, seed=seed)
        assert found.low <= found.value <= found.high
        covered += found.low <= truth <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_each_side_is_resampled_among_itself() -> None:
    # Drawn from both at once, one in three resamples would lack the one positive.
    found = auroc_interval([0.5], [0.0, 1.0], rounds=500)
    assert (found.value, found.low, found.high) == (0.5, 0, 1)
    certain = auroc_interval([0.5], [0.0, 0.0], rounds=500)
    assert (certain.low, certain.high) == (1, 1)


def test_the_same_seed_gives_the_same_interval_in_any_order_of_the_rows() -> None:
    scores = np.random.default_rng(0).random(50).tolist()
    positives, negatives = scores[:20], scores[20:]
    found = auroc_interval(positives, negatives, seed=3)
    assert found == auroc_interval(positives[::-1], negatives[::-1], seed=3)
    assert found != auroc_interval(positives, negatives, seed=4)


def test_many_scores_are_resampled_piece_by_piece_in_as_many_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []

    def resampled(
        counts: NDArray[np.int64], rounds: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        sizes.append(rounds)
        return np.tile(counts, (rounds, 1))

    monkeypatch.setattr(detection, "_CELLS", 64)
    monkeypatch.setattr(detection, "_resampled", resampled)
    found = auroc_interval([float(n) for n in range(10)], [4.5, 9.5] * 10, rounds=101)
    assert found.low == found.value == found.high
    assert sum(sizes) == 2 * 101
    assert max(sizes) == 64 // 12


def test_a_missing_side_and_a_score_that_is_no_number_are_refused() -> None:
    with pytest.raises(ValueError, match="0 positives, 1 negatives"):
        auroc([], [1.0])
    with pytest.raises(ValueError, match="not a number"):
        auroc([1.0], [float("nan")])
    with pytest.raises(ValueError, match="rounds"):
        auroc_interval([1.0], [0.0], rounds=0)
