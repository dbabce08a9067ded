"""Curves are thinned out without losing what they look like."""

from __future__ import annotations

import pytest

from dylora_moe.build.run_logs import Point
from dylora_moe.serving.curves import thinned


def curve(values: list[float]) -> list[Point]:
    return [Point(float(place), "p", value) for place, value in enumerate(values)]


def test_a_short_curve_stays_as_it_is() -> None:
    points = curve([3.0, 2.0, 1.0])
    assert thinned(points, 4) == ((0.0, 3.0), (1.0, 2.0), (2.0, 1.0))
    assert thinned([]) == ()


@pytest.mark.parametrize("length", [11, 100, 1003])
def test_a_long_one_keeps_its_ends_its_spikes_and_its_order(length: int) -> None:
    values = [1.0 / (place + 1) for place in range(length)]
    values[length // 3], values[length // 2] = 50.0, -50.0
    kept = thinned(curve(values), 10)
    assert len(kept) <= 10
    assert (kept[0], kept[-1]) == ((0.0, values[0]), (length - 1.0, values[-1]))
    assert {50.0, -50.0} <= {value for _, value in kept}
    assert [place for place, _ in kept] == sorted({place for place, _ in kept})
    assert all(values[int(place)] == value for place, value in kept)
