from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dylora_moe.scoring import matrix

# A loaded machine is no failure.
LAW = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

SCORES = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=n, max_size=n)
)
WORKED = [[0.9, 0.2, 0.1], [0.8, 0.7, 0.3], [0.5, 0.6, 0.9]]


def test_the_metrics_of_a_worked_example() -> None:
    assert matrix.average_accuracy(WORKED) == pytest.approx((0.5 + 0.6 + 0.9) / 3)
    assert matrix.backward_transfer(WORKED) == pytest.approx((-0.4 - 0.1) / 2)
    assert matrix.forgetting(WORKED) == pytest.approx((0.4 + 0.1) / 2)
    assert matrix.forgetting_per_skill(WORKED) == [pytest.approx(0.4), pytest.approx(0.1), None]
    assert matrix.forward_transfer(WORKED, [0.0, 0.1, 0.1]) == pytest.approx((0.1 + 0.2) / 2)


@LAW
@given(SCORES)
def test_forgetting_is_at_least_minus_backward_transfer(scores: list[list[float]]) -> None:
    forgotten, transfer = matrix.forgetting(scores), matrix.backward_transfer(scores)
    if forgotten is None or transfer is None:
        assert len(scores) == 1
    else:
        assert forgotten >= -transfer - 1e-9


@LAW
@given(SCORES)
def test_a_learner_that_never_changes_forgets_nothing(scores: list[list[float]]) -> None:
    frozen = [scores[0]] * len(scores)
    if len(scores) > 1:
        assert matrix.forgetting(frozen) == 0
        assert matrix.backward_transfer(frozen) == 0


def test_a_stream_in_which_skills_return_names_when_each_was_learned() -> None:
    scores = [[0.9, None], [0.9, None], [0.7, 0.8], [0.8, 0.6]]
    assert matrix.backward_transfer(scores, [0, 2]) == pytest.approx((-0.1 - 0.2) / 2)
    assert matrix.forgetting(scores, [0, 2]) == pytest.approx((0.1 + 0.2) / 2)
    assert matrix.average_accuracy(scores) == pytest.approx(0.7)


def test_one_skill_has_no_transfer_and_no_forgetting() -> None:
    assert matrix.backward_transfer([[0.5]]) is None
    assert matrix.forgetting([[0.5]]) is None
    assert matrix.forward_transfer([[0.5]], [0.1]) is None
    assert matrix.average_accuracy([]) is None


def test_a_ragged_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="column for each skill"):
        matrix.backward_transfer([[0.1], [0.1, 0.2]])
