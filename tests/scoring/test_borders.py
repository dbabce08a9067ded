from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dylora_moe.scoring.borders import BorderMatch, match_borders

# A loaded machine is no failure.
LAW = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

POSITIONS = st.lists(st.integers(0, 20), unique=True, max_size=6)
WINDOW = st.integers(0, 4)


@LAW
@given(POSITIONS, WINDOW, WINDOW)
def test_exact_detection_finds_every_border_without_delay(
    borders: list[int], tolerance: int, early: int
) -> None:
    found = match_borders(borders, borders, tolerance=tolerance, early=early)
    assert found.matches == tuple(BorderMatch(b, b) for b in sorted(borders))
    assert (found.missed, found.false_alarms) == ((), ())
    if borders:
        assert (found.precision, found.recall, found.f1, found.mean_delay) == (1, 1, 1, 0)


@LAW
@given(POSITIONS, POSITIONS, WINDOW, WINDOW)
def test_each_border_and_each_detection_is_counted_once_and_within_the_window(
    borders: list[int], detected: list[int], tolerance: int, early: int
) -> None:
    found = match_borders(borders, detected, tolerance=tolerance, early=early)
    assert sorted([*(m.border for m in found.matches), *found.missed]) == sorted(borders)
    assert sorted([*(m.detected for m in found.matches), *found.false_alarms]) == sorted(detected)
    assert all(-early <= match.delay <= tolerance for match in found.matches)


def most_pairs(borders: list[int], detected: list[int], tolerance: int, early: int) -> int:
    """The most pairs that any one-to-one matching has, by trying all."""
    if not borders:
        return 0
    first, rest = borders[0], borders[1:]
    counts = [most_pairs(rest, detected, tolerance, early)]
    for position in detected:
        if -early <= position - first <= tolerance:
            left = [other for other in detected if other != position]
            counts.append(1 + most_pairs(rest, left, tolerance, early))
    return max(counts)


@LAW
@given(POSITIONS, POSITIONS, WINDOW, WINDOW)
def test_no_other_matching_finds_more_borders(
    borders: list[int], detected: list[int], tolerance: int, early: int
) -> None:
    found = match_borders(borders, detected, tolerance=tolerance, early=early)
    assert len(found.matches) == most_pairs(borders, detected, tolerance, early)


def test_a_border_takes_the_earliest_detection_that_is_left_in_its_window() -> None:
    found = match_borders([10, 20], [12, 11, 19, 23, 40], tolerance=3)
    assert found.matches == (BorderMatch(10, 11), BorderMatch(20, 23))
    assert found.false_alarms == (12, 19, 40)
    assert found.precision == pytest.approx(2 / 5)
    assert found.recall == 1
    assert found.f1 == pytest.approx(4 / 7)
    assert found.mean_delay == pytest.approx((1 + 3) / 2)


def test_a_window_is_closed_at_both_ends_and_nothing_is_found_outside_it() -> None:
    assert match_borders([10], [13], tolerance=3).recall == 1
    assert match_borders([10], [14], tolerance=3).recall == 0
    assert match_borders([10], [9], tolerance=3).recall == 0
    early = match_borders([10], [8], tolerance=3, early=2)
    assert (early.recall, early.mean_delay) == (1, -2)


def test_two_borders_share_no_detection() -> None:
    found = match_borders([10, 11], [12], tolerance=5)
    assert found.matches == (BorderMatch(10, 12),)
    assert (found.missed, found.precision, found.recall) == ((11,), 1, 0.5)


def test_silence_scores_zero_where_there_are_borders_and_nothing_where_there_are_none() -> None:
    silent = match_borders([10], [], tolerance=1)
    assert (silent.precision, silent.recall, silent.f1, silent.mean_delay) == (None, 0, 0, None)
    alarmed = match_borders([], [10], tolerance=1)
    assert (alarmed.precision, alarmed.recall, alarmed.f1) == (0, None, 0)
    empty = match_borders([], [], tolerance=1)
    assert (empty.precision, empty.recall, empty.f1) == (None, None, None)


def test_a_negative_window_and_a_position_that_is_named_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        match_borders([1], [1], tolerance=-1)
    with pytest.raises(ValueError, match="two detections at one position"):
        match_borders([1], [2, 2], tolerance=1)
