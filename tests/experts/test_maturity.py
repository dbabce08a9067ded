from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dylora_moe.errors import ConfigError
from dylora_moe.experts.maturity import after_bad_data, after_training
from dylora_moe.records import MATURE_FROM

share = st.floats(0, 1)
loss = st.floats(0, 20)
steps = st.integers(0, 10_000)


@given(share, steps, loss, loss, st.none() | loss)
def test_training_never_lowers_it_and_it_stays_within_one(
    m: float, s: int, own: float, base: float, near: float | None
) -> None:
    assert m <= after_training(m, s, own, base, near) <= 1


@given(share, steps, steps, loss, loss)
def test_more_steps_never_make_it_less(
    m: float, s: int, more: int, own: float, base: float
) -> None:
    assert after_training(m, s, own, base) <= after_training(m, s + more, own, base)


@given(share, steps, loss, st.floats(0, 5), loss, st.none() | loss)
def test_a_higher_loss_never_makes_it_more(
    m: float, s: int, own: float, worse: float, base: float, near: float | None
) -> None:
    assert after_training(m, s, own + worse, base, near) <= after_training(m, s, own, base, near)


@given(share, steps, loss, loss, loss)
def test_a_neighbour_never_makes_it_more(
    m: float, s: int, own: float, base: float, near: float
) -> None:
    assert after_training(m, s, own, base, near) <= after_training(m, s, own, base)


@given(share, st.floats(-2, 3), st.floats(0, 3))
def test_bad_data_lowers_it_the_more_the_worse_the_fit(m: float, fit: float, worse: float) -> None:
    assert 0 <= after_bad_data(m, fit + worse) <= after_bad_data(m, fit) <= m


def test_no_steps_and_no_gain_teach_nothing() -> None:
    assert after_training(0.3, 0, 0.1, 3.0) == 0.3
    assert after_training(0.3, 500, 3.0, 3.0) == 0.3


def test_a_usual_run_matures_an_expert_and_half_a_fit_unmakes_it() -> None:
    mature = after_training(0.0, 64, 0.25, 3.0, 2.0)
    assert mature >= MATURE_FROM
    assert after_bad_data(mature, 0.6) < MATURE_FROM


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_numbers_out_of_range_are_refused(bad: float) -> None:
    with pytest.raises(ConfigError):
        after_training(0.0, 10, bad, 3.0)
    with pytest.raises(ConfigError):
        after_training(bad, 10, 1.0, 3.0)
    with pytest.raises(ConfigError):
        after_bad_data(bad, 0.5)
