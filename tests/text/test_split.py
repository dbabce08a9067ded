from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dylora_moe.errors import DataError
from dylora_moe.records import Example, pair
from dylora_moe.text.split import report, split

# A loaded machine is no failure.
LAW = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

ROWS = [pair(f"prompt {n}", f"answer {n}") for n in range(1000)]


@LAW
@given(st.lists(st.sampled_from(ROWS), unique=True), st.lists(st.sampled_from(ROWS), unique=True))
def test_rows_that_return_never_change_sides(first: list[Example], second: list[Example]) -> None:
    returned = [pair(row.prompt, row.completion, origin="another file:1") for row in second]
    one, other = split(first), split(returned)
    assert not set(one[0]) & set(other[1])
    assert not set(one[1]) & set(other[0])
    assert sorted(one[0] + one[1], key=repr) == sorted(first, key=repr)


def test_the_split_does_not_depend_on_order() -> None:
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    assert set(split(ROWS)[1]) == set(split(shuffled)[1])


def test_about_the_fraction_validates_and_a_smaller_one_is_within_a_larger() -> None:
    small, large = set(split(ROWS, 0.1)[1]), set(split(ROWS, 0.2)[1])
    assert small < large
    assert 70 < len(small) < 130


def test_too_few_are_told_and_not_topped_up(caplog: pytest.LogCaptureFixture) -> None:
    train, validation = split(ROWS[:10])
    assert (set(train), set(validation)) == tuple(
        set(part) & set(ROWS[:10]) for part in split(ROWS)
    )
    found = report(train, validation)
    assert not found.enough
    assert "8 wanted" in found.message
    assert found.message in caplog.text
    assert report(*split(ROWS)).enough


def test_a_fraction_out_of_range_is_refused() -> None:
    with pytest.raises(DataError, match=r"validation fraction 1\.5"):
        split(ROWS, 1.5)
