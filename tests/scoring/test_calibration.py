from __future__ import annotations

import numpy as np
import pytest

from dylora_moe.scoring.calibration import (
    brier_score,
    calibration_error,
    expected_calibration_error,
)


def of_two(confidences: list[float]) -> list[list[float]]:
    """Rows of two classes, the first with this probability."""
    return [[p, 1 - p] for p in confidences]


def test_the_metrics_of_a_worked_example() -> None:
    table = of_two([0.6, 0.7, 0.8, 0.9])
    truths = [0, 1, 0, 0]
    # Two bins: {0.6, 0.7} with one right of two, {0.8, 0.9} with both right.
    wanted = 0.5 * abs(0.5 - 0.65) + 0.5 * abs(1 - 0.85)
    assert expected_calibration_error(table, truths, bins=2) == pytest.approx(wanted)
    squares = [2 * 0.4**2, 2 * 0.7**2, 2 * 0.2**2, 2 * 0.1**2]
    assert brier_score(table, truths) == pytest.approx(sum(squares) / 4)


def test_sure_and_right_has_no_error_and_sure_and_wrong_has_all_of_it() -> None:
    table = [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    assert expected_calibration_error(table, [0, 2]) == 0
    assert brier_score(table, [0, 2]) == 0
    assert expected_calibration_error(table, [1, 1]) == 1
    assert brier_score(table, [1, 1]) == 2


def test_guessing_evenly_among_classes_scores_one_minus_their_share() -> None:
    assert brier_score([[0.25] * 4] * 3, [0, 1, 3]) == pytest.approx(1 - 1 / 4)


def test_probabilities_that_mean_what_they_say_have_nearly_no_error() -> None:
    rng = np.random.default_rng(0)
    first = rng.uniform(0, 1, 20_000)
    truths = np.where(rng.random(20_000) < first, 0, 1).tolist()
    honest = np.stack([first, 1 - first], axis=1)
    assert expected_calibration_error(honest, truths) < 0.02
    sharper = honest**3 / (honest**3).sum(axis=1, keepdims=True)
    assert expected_calibration_error(sharper, truths) > 0.08
    assert brier_score(honest, truths) < brier_score(sharper, truths)


def test_the_order_of_the_rows_makes_no_difference_where_confidences_tie() -> None:
    rng = np.random.default_rng(1)
    first = rng.choice([0.5, 0.75, 1.0], 60)
    table, truths = np.stack([first, 1 - first], axis=1), rng.integers(0, 2, 60)
    found = expected_calibration_error(table, truths.tolist(), bins=7)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(60)
        again = expected_calibration_error(table[order], truths[order].tolist(), bins=7)
        assert again == pytest.approx(found, abs=1e-12)


def test_rows_of_equal_confidence_are_in_the_bin_in_which_they_begin() -> None:
    # The three begin in the first of two bins, and so does the row before them.
    found = expected_calibration_error(of_two([0.6, 0.9, 0.9, 0.9]), [1, 0, 0, 0], bins=2)
    assert found == pytest.approx(abs(3 - 0.6 - 3 * 0.9) / 4)


def test_bins_hold_the_same_number_of_rows_however_crowded_their_confidences() -> None:
    # In one bin of equal width the two halves would cancel: 0.90 too low, 0.92 too high.
    table = of_two([0.90] * 2 + [0.92] * 2)
    truths = [0, 0, 1, 0]
    wanted = 0.5 * (1 - 0.90) + 0.5 * (0.92 - 0.5)
    assert expected_calibration_error(table, truths, bins=2) == pytest.approx(wanted)
    assert expected_calibration_error(table, truths, bins=1) == pytest.approx(0.91 - 0.75)


def test_more_bins_than_rows_judge_each_row_alone() -> None:
    assert expected_calibration_error(of_two([0.6, 0.8]), [0, 1], bins=99) == pytest.approx(
        (0.4 + 0.8) / 2
    )


def test_of_equal_probabilities_the_first_column_is_the_choice() -> None:
    assert expected_calibration_error([[0.5, 0.5]], [0]) == pytest.approx(0.5)
    assert expected_calibration_error([[0.5, 0.5]], [1]) == pytest.approx(0.5)
    table, truths = [[0.4, 0.4, 0.2]] * 4, [0, 0, 0, 1]
    assert expected_calibration_error(table, truths) == pytest.approx(0.75 - 0.4)


@pytest.mark.parametrize(
    ("table", "truths", "message"),
    [
        ([], [], "rows, classes"),
        ([[1.0]], [0, 0], "rows, classes"),
        ([[0.5, 0.6]], [0], "sum to one"),
        ([[1.5, -0.5]], [0], "sum to one"),
        ([[float("nan"), 1.0]], [0], "sum to one"),
        ([[1.0, 0.0]], [2], "no column of 2"),
        ([[1.0, 0.0]], [-1], "no column of 2"),
    ],
)
def test_what_is_no_probability_is_refused(
    table: list[list[float]], truths: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        brier_score(table, truths)
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(table, truths)


def test_the_largest_probability_alone_gives_the_same_error() -> None:
    rng = np.random.default_rng(2)
    table = rng.dirichlet(np.ones(4), 50)
    truths = rng.integers(0, 4, 50)
    alone = calibration_error(table.max(axis=1), table.argmax(axis=1) == truths)
    assert alone == pytest.approx(expected_calibration_error(table, truths.tolist()), abs=1e-12)
    # However unsure: rows take no columns.
    assert calibration_error([1e-9] * 3, [False] * 3) == pytest.approx(1e-9)
    assert calibration_error([0.0, 1.0], [False, True]) == 0


@pytest.mark.parametrize(
    ("confidences", "hits", "message"),
    [([], [], r"\[rows\]"), ([0.5], [1, 0], r"\[rows\]"), ([float("nan")], [1], "0 to 1"),
     ([-0.1], [1], "0 to 1"), ([1.1], [1], "0 to 1")],
)  # fmt: skip
def test_what_is_no_confidence_is_refused(
    confidences: list[float], hits: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        calibration_error(confidences, hits)


def test_a_calibration_error_needs_a_bin() -> None:
    with pytest.raises(ValueError, match="0 bins"):
        expected_calibration_error([[1.0]], [0], bins=0)
