"""The figures of an arm are those of its rows, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dylora_moe.evaluation.continual.measures import (
    accuracy_matrix,
    backward_transfer,
    borders_found,
    calibration_error,
    figures,
    routing_accuracy,
)
from dylora_moe.evaluation.continual.pairing import average, compared
from dylora_moe.evaluation.continual.results import ArmResult
from dylora_moe.scoring import matrix as transfer
from tests.evaluation.continual.made_results import at_once, result, rows

LEARNED = result(
    [
        ("sums", rows({"sums": [1, 1, 1, 0], "hats": [0, 0, 0, 1]})),
        ("hats", rows({"sums": [1, 1, 0, 0], "hats": [1, 1, 1, 1]})),
        ("sums", rows({"sums": [1, 1, 1, 1], "hats": [1, 1, 0, 1]})),
    ],
    stream="returning",
)
BASE = at_once({"sums": [0, 0, 0, 0], "hats": [0, 0, 0, 0]}, arm="base", stream="returning")


def test_the_matrix_has_a_line_for_each_visit_and_a_column_for_each_skill() -> None:
    assert accuracy_matrix(LEARNED) == [[0.75, 0.25], [0.5, 1.0], [1.0, 0.75]]


def test_accuracy_counts_each_skill_the_same_however_many_rows_it_has() -> None:
    uneven = at_once({"sums": [1.0] * 9, "hats": [0.0]})
    assert average([uneven], lambda row: row.score).value == pytest.approx(0.5)


def test_transfer_and_forgetting_are_those_of_the_matrix() -> None:
    found = figures([LEARNED], base=[BASE])
    matrix, learned = accuracy_matrix(LEARNED), [0, 1]
    assert found.accuracy.value == pytest.approx(0.875)
    assert found.backward_transfer is not None
    assert found.backward_transfer.value == pytest.approx(
        transfer.backward_transfer(matrix, learned)
    )
    assert found.backward_transfer.low <= 0.0 <= found.backward_transfer.high
    assert found.forgetting == pytest.approx(transfer.forgetting(matrix, learned))
    assert found.forward_transfer == pytest.approx(0.25)
    assert found.visits == ("sums", "hats", "sums")


def test_the_skill_of_the_last_visit_had_no_time_to_be_forgotten() -> None:
    lost = result(
        [
            ("sums", rows({"sums": [1, 1], "hats": [0, 0]})),
            ("hats", rows({"sums": [0, 0], "hats": [1, 1]})),
        ]
    )
    found = backward_transfer([lost])
    assert found is not None
    assert found.value == transfer.backward_transfer(accuracy_matrix(lost)) == -1


def test_an_arm_that_was_asked_once_has_no_transfer() -> None:
    found = figures([BASE], base=[BASE])
    assert (found.backward_transfer, found.forgetting, found.forward_transfer) == (None, None, None)
    assert (found.matrix, found.visits) == ((), ())


def test_what_never_changes_has_a_transfer_of_exactly_zero() -> None:
    same = rows({"sums": [1, 0], "hats": [0, 1]})
    found = backward_transfer([result([("sums", same), ("hats", same)])])
    assert found is not None
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_an_arm_against_itself_is_exactly_one_and_against_a_better_one_below() -> None:
    other = at_once({"sums": [1, 1, 1, 1], "hats": [1, 1, 1, 1]}, stream="returning")
    same, worse = compared([LEARNED], [LEARNED]), compared([LEARNED], [other])
    assert (same.value, same.low, same.high) == (1, 1, 1)
    assert worse.value == pytest.approx(0.875)
    assert worse.low < worse.value < worse.high
    assert compared([LEARNED], [other], "difference").value == pytest.approx(-0.125)


def test_seeds_are_compared_each_with_itself_and_those_of_one_side_alone_not_at_all() -> None:
    good = [at_once({"sums": [1, 1]}, seed=seed) for seed in (0, 1, 2)]
    half = [at_once({"sums": [1, 0]}, seed=seed) for seed in (1, 2, 3)]
    assert compared(half, good).value == pytest.approx(0.5)
    with pytest.raises(ValueError, match="seed"):
        compared(half[2:], good)


def test_rows_of_one_side_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="one side"):
        compared([at_once({"sums": [1, 1]})], [at_once({"sums": [1]})])


ROUTED = at_once(
    {"sums": [1, 1, 1, 1], "hats": [1, 1], "moods": [1, 1]},
    routed={
        "sums": ["sums", "sums", "sums", "hats"],
        "hats": ["hats", "moods"],
        "moods": ["moods", ""],
    },
    confidence=0.5,
)


def test_routing_is_right_where_a_row_goes_to_its_own_skill() -> None:
    found = figures([ROUTED], neighbours=[("hats", "moods")])
    assert found.routing is not None
    assert found.routing.value == pytest.approx((0.75 + 0.5 + 0.5) / 3)
    assert found.routing_distinct is not None
    assert found.routing_distinct.value == pytest.approx(0.75)
    assert found.routing_near is not None
    assert found.routing_near.value == pytest.approx(0.5)
    assert routing_accuracy([LEARNED]) is None


def test_a_router_that_is_always_right_and_sure_is_calibrated() -> None:
    sure = at_once({"sums": [1, 1]}, routed={"sums": ["sums", "sums"]}, confidence=1.0)
    assert calibration_error([sure]) == pytest.approx(0.0)
    wrong = at_once({"sums": [1, 1]}, routed={"sums": ["hats", "hats"]}, confidence=1.0)
    assert calibration_error([wrong]) == pytest.approx(1.0)
    assert calibration_error([LEARNED]) is None


def test_the_calibration_error_is_the_gap_between_share_and_confidence() -> None:
    # 5 of 8 rows are right, and each was given half.
    assert calibration_error([ROUTED]) == pytest.approx(0.125)
    unsure = at_once({"sums": [1] * 10}, routed={"sums": ["sums"] + ["hats"] * 9}, confidence=0.1)
    assert calibration_error([unsure]) == pytest.approx(0.0)
    nearly = at_once({"sums": [1]}, routed={"sums": ["sums"]}, confidence=1e-6)
    assert calibration_error([nearly]) == pytest.approx(1 - 1e-6, abs=1e-9)


def with_borders(detected: list[int], true: list[int] | None = None) -> ArmResult:
    told = {"true": true or [4, 8], "detected": detected, "tolerance": 3, "early": 0}
    return replace(LEARNED, details={"borders": told, "experts_grown": 3, "new_for_returning": 1})


def test_borders_found_at_once_are_perfect_and_late_or_false_ones_are_told() -> None:
    perfect = borders_found(with_borders([4, 8]))
    assert perfect is not None
    assert (perfect.precision, perfect.recall, perfect.mean_delay) == (1, 1, 0)
    late = borders_found(with_borders([6, 12]))
    assert late is not None
    assert (late.precision, late.recall, late.mean_delay) == (0.5, 0.5, 2)
    assert borders_found(LEARNED) is None


def test_growth_is_that_of_the_details() -> None:
    found = figures([with_borders([4])])
    assert (found.experts, found.skills, found.new_for_returning) == (3, 2, 1)


def test_several_seeds_are_one_arm() -> None:
    other = replace(LEARNED, seed=1, seconds=3.0)
    found = figures([LEARNED, other], base=[BASE])
    assert found.seeds == (0, 1)
    assert found.seconds == 2
    assert found.accuracy.value == pytest.approx(0.875)
    assert found.by_skill == {"sums": 1.0, "hats": 0.75}


def test_seeds_that_answer_the_same_rows_alike_make_no_interval_narrower() -> None:
    one = figures([LEARNED])
    three = figures([replace(LEARNED, seed=seed) for seed in range(3)])
    assert three.accuracy == one.accuracy
    assert one.backward_transfer is not None
    assert three.backward_transfer == one.backward_transfer


def test_seeds_that_differ_make_an_interval_wider() -> None:
    same = {"sums": [1.0] * 20 + [0.0] * 20}
    other = {"sums": [1.0] * 4 + [0.0] * 36}
    alike = figures([at_once(same, seed=seed) for seed in range(4)]).accuracy
    apart = figures([at_once(other if seed % 2 else same, seed=seed) for seed in range(4)]).accuracy
    assert apart.high - apart.low > 1.3 * (alike.high - alike.low)


def test_token_f1_is_of_whole_answers_alone() -> None:
    short = result([("", tuple(replace(row, f1=None) for row in rows({"sums": [0.0]})))])
    with pytest.raises(ValueError, match="not written to its end"):
        figures([short])
