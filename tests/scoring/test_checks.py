from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dylora_moe.errors import DataError
from dylora_moe.scoring import checks

# A loaded machine is no failure.
LAW = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def _same(left: Any, right: Any) -> bool:
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


@LAW
@given(VALUES, VALUES)
def test_json_scores_one_exactly_when_both_are_equal(left: Any, right: Any) -> None:
    found = checks.json_score(json.dumps(left), json.dumps(right, indent=1))
    assert 0.0 <= found <= 1.0
    assert (found == 1.0) == _same(left, right)


@LAW
@given(VALUES)
def test_json_ignores_the_order_of_keys_and_white_space(value: Any) -> None:
    assert checks.json_score(json.dumps(value), json.dumps(value, indent=3, sort_keys=True)) == 1.0


def test_json_gives_part_of_the_slots_part_of_the_score() -> None:
    right = '{"item": "plums", "qty": 3, "to": "Oslo", "by": "Friday"}'
    assert (
        checks.json_score('{"item": "plums", "qty": 4, "to": "Oslo", "by": "Friday"}', right)
        == 0.75
    )
    assert checks.json_score('{"item": "plums"}', right) == pytest.approx(0.4)


@pytest.mark.parametrize("answer", ["", "plums", '{"a": 1', '{"a": NaN}', "[" * 100_000])
def test_an_answer_that_is_no_json_scores_zero(answer: str) -> None:
    assert checks.json_score(answer, '{"a": 1}') == 0.0


def test_json_true_is_not_one_and_one_is_one_point_zero() -> None:
    assert checks.json_score("[true]", "[1]") == 0.0
    assert checks.json_score("[1.0]", "[1]") == 1.0


@LAW
@given(st.text(), st.text())
def test_token_f1_is_symmetric_bounded_and_one_on_itself(left: str, right: str) -> None:
    found = checks.token_f1(left, right)
    assert found == checks.token_f1(right, left)
    assert 0.0 <= found <= 1.0
    assert checks.token_f1(left, left) == 1.0


def test_token_f1_counts_repetitions() -> None:
    assert checks.token_f1("a a b", "a b b") == pytest.approx(2 / 3)


@given(st.text(" a\nb", max_size=6), st.text(" a\nb", max_size=6))
def test_a_score_that_is_settled_by_the_beginning_is_the_answers(
    answer: str, reference: str
) -> None:
    for length in range(len(answer) + 1):
        settled = checks.settled("exact", answer[:length], reference)
        assert settled in (None, checks.exact(answer, reference))


def test_a_wrong_beginning_settles_exact_and_nothing_else() -> None:
    assert checks.settled("exact", " ab", "aa") == 0.0
    assert checks.settled("exact", " a", "aa") is None
    for check in set(checks.CHECKS) - {"exact"}:
        assert checks.settled(check, "ab", "aa") is None


LOOSE = st.sampled_from(
    ['{"a":1.5e-3 }', "[1 ,-0.5E+7, null]", '"\\u00e4 \\" x"', " \n-12.5 ", "NaN"]
)


@LAW
@given(st.one_of(VALUES.map(json.dumps), VALUES.map(lambda v: json.dumps(v, indent=1)), LOOSE))
def test_the_beginning_of_what_may_become_json_settles_nothing(text: str) -> None:
    for length in range(len(text) + 1):
        assert checks.settled("json", text[:length], "{}") is None, text[:length]


@LAW
@given(st.text('{}[]",:1.e-tr ua\\\n', max_size=12), st.integers(0, 12))
def test_a_beginning_that_settles_json_is_of_no_json(answer: str, length: int) -> None:
    if checks.settled("json", answer[:length], '{"a": 1}') is not None:
        assert checks.json_score(answer, '{"a": 1}') == 0.0


@pytest.mark.parametrize(
    "beginning",
    [
        "SELECT",
        "travel",
        "B UW1",
        "{a",
        '{"a" 1',
        '{"a": b',
        "[1 x",
        "{} {",
        "trues",
        '"a\nb',
        "1 a",
    ],
)
def test_what_is_no_json_however_it_goes_on_is_settled(beginning: str) -> None:
    assert checks.settled("json", beginning, "{}") == 0.0
    # A reference that the check cannot read is for `score` to refuse.
    assert checks.settled("json", beginning, "{") is None


def test_exact_trims_the_ends_only() -> None:
    assert checks.exact("  FWD FWD\n", "FWD FWD") == 1.0
    assert checks.exact("FWD  FWD", "FWD FWD") == 0.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("so 3 + 4\n#### 7", "7"),
        ("#### 1,234 apples, of 9", "1234"),
        ("the answer is $18.50.", "18.50"),
        ("between 5-3 it is -2", "-2"),
        ("5-3", "3"),
        ("first #### 1 then #### 2", "2"),
        ("none at all", None),
        ("7 ####", None),
    ],
)
def test_the_number_is_behind_the_mark_or_the_last(text: str, value: str | None) -> None:
    found = checks.final_number(text)
    assert (None if found is None else str(found)) == value


def test_numbers_compare_as_numbers() -> None:
    assert checks.number("it makes 42.0", "#### 42") == 1.0
    assert checks.number("no idea", "#### 42") == 0.0


def test_score_knows_every_check_and_refuses_others() -> None:
    rows = {
        "exact": ("a", "a"),
        "json": ("[1]", "[1]"),
        "f1": ("a b", "b a"),
        "number": ("2", "#### 2"),
        "tests": ("def f():\n    return 1", ""),
    }
    assert set(rows) == set(checks.CHECKS)
    for check, (answer, reference) in rows.items():
        assert checks.score(check, answer, reference, ("assert f() == 1",)) == 1.0
    with pytest.raises(DataError, match="unknown check 'bleu'"):
        checks.score("bleu", "a", "a")


def test_a_reference_that_the_check_cannot_read_is_an_error() -> None:
    with pytest.raises(DataError, match="no JSON"):
        checks.score("json", "{}", "plums")
    with pytest.raises(DataError, match="no number"):
        checks.score("number", "1", "plums")
