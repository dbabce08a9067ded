"""The table says what was shown: a perfect arm reaches it, one with shuffled ids does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from dylora_moe.evaluation.continual.goals import Evidence, GoalRow, Table, table
from dylora_moe.evaluation.continual.measures import figures
from dylora_moe.evaluation.continual.results import ArmResult
from dylora_moe.records import Interval
from tests.evaluation.continual.made_results import SKILLS, at_once, result, rows

RIGHT = {skill: [1.0] * 40 for skill in SKILLS}
WRONG = {skill: [0.0] * 38 + [1.0] * 2 for skill in SKILLS}
HOME = {skill: [skill] * 40 for skill in SKILLS}
LOST = {skill: [other] * 40 for skill, other in zip(SKILLS, (*SKILLS[1:], SKILLS[0]), strict=True)}


def ours(stream: str = "hard", grown: int = 3, **more: object) -> ArmResult:
    stages = [(skill, rows(RIGHT, routed=HOME)) for skill in SKILLS]
    return result(stages, stream=stream, experts_grown=grown, **more)  # type: ignore[arg-type]


PERFECT = [
    ours(),
    ours("blurred"),
    ours("mixed"),
    ours("returning", new_for_returning=0),
    at_once(RIGHT, arm="oracle-bank"),
    at_once(RIGHT, arm="multi-task"),
    at_once({skill: [1.0] * 20 + [0.0] * 20 for skill in SKILLS}, arm="o-lora"),
    at_once(WRONG, arm="base"),
    at_once(WRONG, arm="shuffled", routed=LOST),
]
SCREENED = {"unseen": Interval(1.0, 1.0, 1.0), "out of scope": Interval(0.9, 0.8, 0.95)}


def told(results: Sequence[ArmResult], screening: dict[str, Interval] | None = None) -> Table:
    found: dict[tuple[str, str], list[ArmResult]] = {}
    for one in results:
        found.setdefault((one.stream, one.arm), []).append(one)
    near = [("sums", "hats")]
    by_arm = {key: figures(some, neighbours=near) for key, some in found.items()}
    return table(Evidence(found, by_arm, screening or {}))


def row(found: Table, words: str) -> GoalRow:
    (one,) = [row for row in found.rows if words in row.measure]
    return one


def short(one: GoalRow) -> bool:
    """Whether the end of the interval nearest to failing is short of the must."""
    if one.must is None or one.value is None:
        return False
    near = one.high if one.direction == "at most" else one.low
    if not one.interval:
        near = one.value
    if near is None:
        return True
    return near > one.must if one.direction == "at most" else near < one.must


def test_a_perfect_learner_reaches_every_must_and_every_claim_is_there() -> None:
    found = told(PERFECT, SCREENED)
    assert found.missing == ()
    assert len(found.rows) == 15
    assert [one.measure for one in found.rows if short(one)] == []
    for words in ("oracle ids", "multi-task", "blurred stream / bank", "mixed unlabelled"):
        assert {one.value for one in found.rows if words in one.measure} == {1.0}
    assert row(found, "O-LoRA").value == pytest.approx(50)
    assert row(found, "distinct").value == row(found, "near").value == 100
    assert row(found, "base's loss").value == 0
    assert row(found, "backward").value == 0


def test_ids_that_are_shuffled_score_badly() -> None:
    shuffled = [
        result([(skill, rows(WRONG, routed=LOST)) for skill in SKILLS], experts_grown=3),
        *(one for one in PERFECT if one.arm != "ours"),
    ]
    found = told(shuffled)
    for words in ("hard switches, no ids / bank", "multi-task", "distinct", "near", "O-LoRA"):
        assert short(row(found, words)), words
    assert row(found, "distinct").value == 0


def test_too_many_experts_are_told_by_their_number() -> None:
    found = told([ours(grown=5), ours("returning", new_for_returning=1)])
    assert row(found, "minus true skills, hard").value == 2
    assert short(row(found, "minus true skills, hard"))
    assert short(row(found, "returns"))


def test_too_few_experts_are_as_wrong_as_too_many_and_seeds_do_not_make_up_for_each_other() -> None:
    few = row(told([ours(grown=1)]), "minus true skills, hard")
    assert (few.value, few.note) == (2, "2 too few")
    assert short(few)
    both = row(told([ours(grown=4), replace(ours(grown=1), seed=1)]), "minus true skills, hard")
    assert (both.value, both.note) == (2, "2 too few")
    assert row(told([ours(grown=4)]), "minus true skills, hard").note == "1 too many"
    assert row(told([ours()]), "minus true skills, hard").note == ""


def test_an_interval_with_one_infinite_end_keeps_the_other() -> None:
    rare = {skill: [1.0] + [0.0] * 39 for skill in SKILLS}
    seldom = {SKILLS[0]: rare[SKILLS[0]]}
    mine = result([("sums", rows({"sums": [1.0] * 40}, routed=HOME))], experts_grown=1)
    found = row(told([mine, at_once(seldom, arm="oracle-bank")]), "hard switches, no ids / bank")
    assert found.interval
    assert found.low is not None
    assert found.low >= 10
    assert found.high is None
    assert "open end" in found.note
    assert not short(found)


def test_a_claim_whose_arms_did_not_run_is_left_out_and_named() -> None:
    found = told([ours()])
    assert "experts grown minus true skills, hard switches" in [one.measure for one in found.rows]
    named = " ".join(found.missing)
    for words in ("oracle-bank did not run", "ours on blurred did not run", "no detector"):
        assert words in named
    assert len(found.rows) + len(found.missing) == 15


def test_the_oracle_of_a_blurred_stream_is_that_of_the_same_rows_unless_it_ran_there_itself() -> (
    None
):
    half = {skill: [1.0] * 20 + [0.0] * 20 for skill in SKILLS}
    there = at_once(half, arm="oracle-bank", stream="blurred")
    assert row(told([*PERFECT, there]), "blurred stream / bank").value == 2.0


def test_a_change_of_the_base_counts_in_either_direction() -> None:
    for loss in (1.9, 2.1):
        found = told([ours(base_loss=loss), at_once(WRONG, arm="base", base_loss=2.0)])
        assert row(found, "base's loss").value == pytest.approx(0.05)


def test_the_base_s_change_has_an_interval_over_its_passages() -> None:
    before = [1.0 + 0.05 * n for n in range(40)]
    worse = [loss * (1.004 + 0.004 * (n % 3)) for n, loss in enumerate(before)]

    def change(after: Sequence[float]) -> GoalRow:
        base = at_once(WRONG, arm="base", neutral=before)
        return row(told([ours(neutral=after), base]), "base's loss")

    found = change(worse)
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert 0.004 < found.low < found.value < found.high < 0.012
    # It counts in either direction, and around nothing it begins at nothing.
    better = change([2 * loss - other for loss, other in zip(before, worse, strict=True)])
    assert better.value == pytest.approx(found.value, abs=1e-3)
    straddling = change([loss * (1 + 0.05 * (-1) ** n) for n, loss in enumerate(before)])
    assert straddling.low == 0
    assert straddling.high is not None
    assert straddling.high > 0.005
    same = change(before)
    assert (same.value, same.interval) == (0, False)
    assert short(change([loss * (1.005 + 0.02 * (n % 2)) for n, loss in enumerate(before)]))


def test_text_of_no_skill_that_is_not_the_same_on_both_sides_is_no_claim() -> None:
    missing = told([ours(neutral=[1.0]), at_once(WRONG, arm="base", neutral=[1.0, 2.0])]).missing
    assert any("of other rows" in one for one in missing)
    nobody = told([ours(base_loss=None), at_once(WRONG, arm="base")]).missing
    assert any("no loss on text of no skill" in one for one in nobody)


def test_the_better_of_o_lora_s_two_forms_is_the_one_to_be_ahead_of() -> None:
    quarter = {skill: [1.0] * 10 + [0.0] * 30 for skill in SKILLS}
    squared = at_once(quarter, arm="o-lora-squared")
    assert row(told([ours(), squared]), "O-LoRA").value == pytest.approx(75)
    found = row(told([*PERFECT, squared]), "O-LoRA")
    assert (found.value, found.note) == (pytest.approx(50), "beside o-lora")
    best = at_once({skill: [1.0] * 30 + [0.0] * 10 for skill in SKILLS}, arm="o-lora-squared")
    found = row(told([*PERFECT, best]), "O-LoRA")
    assert (found.value, found.note) == (pytest.approx(25), "beside o-lora-squared")
    assert row(told(PERFECT), "O-LoRA").note == ""


def test_a_ratio_to_nothing_is_left_out() -> None:
    nothing = at_once({skill: [0.0] * 40 for skill in SKILLS}, arm="oracle-bank")
    assert any("zero" in one for one in told([ours(), nothing]).missing)


def test_streams_with_templates_are_claims_of_their_own() -> None:
    found = told([ours(), ours("hard-templated")])
    grown = [one.measure for one in found.rows if "minus" in one.measure]
    assert grown == [
        "experts grown minus true skills, hard switches",
        "experts grown minus true skills, hard switches, with templates",
    ]
