from __future__ import annotations

from typing import Any

import pytest

from dylora_moe.errors import DataError
from dylora_moe.records import Turn
from dylora_moe.text.formats import FORMATS, recognise, to_example

USER, ANSWER = Turn("user", "hi"), Turn("assistant", "yo")
SYSTEM = Turn("system", "be kind")
OURS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
SHARED = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
VARIANT = [{"from": "user", "value": "hi"}, {"from": "chatgpt", "value": "yo"}]
ORDERED = {"from": "system", "value": "be kind"}
BOTH = (USER, ANSWER)
ROWS: list[tuple[str, dict[str, Any], tuple[Turn, ...]]] = [
    ("prompt_completion", {"prompt": "hi", "completion": "yo"}, BOTH),
    ("prompt_completion", {"prompt": "hi", "response": "yo"}, BOTH),
    ("prompt_completion", {"question": "hi", "answer": "yo"}, BOTH),
    ("prompt_completion", {"query": "hi", "response": "yo"}, BOTH),
    ("prompt_completion", {"input": "hi", "output": "yo"}, BOTH),
    (
        "prompt_completion",
        {"system": "be kind", "prompt": "hi", "completion": "yo"},
        (SYSTEM, *BOTH),
    ),
    ("alpaca", {"instruction": "hi", "input": "", "output": "yo"}, BOTH),
    ("alpaca", {"instruction": "hi", "output": "yo", "text": "x"}, BOTH),
    ("alpaca", {"instruction": "hi", "context": None, "response": "yo"}, BOTH),
    (
        "alpaca",
        {"instruction": "hi", "input": "you", "output": "yo"},
        (Turn("user", "hi\nyou"), ANSWER),
    ),
    ("sharegpt", {"conversations": SHARED}, BOTH),
    ("sharegpt", {"conversations": [ORDERED, *VARIANT]}, (SYSTEM, *BOTH)),
    ("messages", {"conversations": OURS}, BOTH),
    ("messages", {"messages": OURS}, BOTH),
    ("messages", {"messages": OURS, "prompt": "hi"}, BOTH),
    ("messages", {"prompt": OURS[:1], "completion": OURS[1:]}, BOTH),
    ("plain", {"text": "yo"}, (ANSWER,)),
]


@pytest.mark.parametrize(("kind", "row", "turns"), ROWS)
def test_a_row_is_recognised_and_becomes_its_turns(
    kind: str, row: dict[str, Any], turns: tuple[Turn, ...]
) -> None:
    assert recognise(row) == kind
    assert to_example(row, kind).turns == turns


def test_every_format_is_covered_above() -> None:
    assert {kind for kind, _, _ in ROWS} == set(FORMATS)


def test_unknown_columns_list_the_formats() -> None:
    with pytest.raises(DataError, match="unknown columns") as error:
        recognise({"headline": "x"})
    assert all(name in str(error.value) for name in FORMATS)


@pytest.mark.parametrize(
    ("row", "fact"),
    [
        ({"prompt": "hi", "completion": " \n"}, "completion is empty"),
        ({"prompt": "", "completion": "yo"}, "prompt is empty"),
        ({"prompt": "hi", "completion": 5}, "must be text, found int"),
        ({"prompt": "hi", "completion": None}, "must be text, found nothing"),
        ({"prompt": "hi", "completion": "yo\ud800"}, "lone surrogate"),
        ({"prompt": "hi", "completion": "yo", "check": "bleu"}, "unknown check 'bleu'"),
        ({"prompt": "hi", "completion": "yo", "check": "json"}, "no JSON"),
        ({"prompt": "hi", "completion": "yo", "check": "number"}, "holds none"),
        ({"prompt": "hi", "completion": "yo", "check": "tests"}, "there are none"),
        ({"prompt": "hi", "completion": "yo", "tests": [1]}, "list of Python asserts"),
        ({"messages": []}, "no turns"),
        ({"messages": ["hi"]}, "turn 1 needs `role`"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "ends with the user"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "unknown role 'tool'"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "completion is empty"),
        ({"text": ""}, "completion is empty"),
    ],
)
def test_a_malformed_row_says_where_and_what(row: dict[str, Any], fact: str) -> None:
    with pytest.raises(DataError, match=fact) as error:
        to_example(row, recognise(row), "rows.jsonl:7")
    assert str(error.value).startswith("rows.jsonl:7: ")
    assert "\n" not in str(error.value)


def test_checks_and_tests_are_carried() -> None:
    row = {"prompt": "hi", "completion": "yo", "tests": ["assert f()"]}
    assert to_example(row, "prompt_completion").check == "tests"
    assert to_example(row | {"check": "f1"}, "prompt_completion").tests == ("assert f()",)
    assert to_example({"text": "yo"}, "plain").check == "exact"
