"""How a generated answer is scored against its reference: one function a check, all in 0 to 1.

Knows text only; nothing of models, datasets or pools.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any, get_args

from dylora_moe.errors import DataError
from dylora_moe.records import Check
from dylora_moe.scoring.sandbox import asserts_hold

CHECKS: tuple[Check, ...] = get_args(Check)
"""Every name `score` accepts."""

# A minus belongs to the number unless it stands between two operands: "5-3" ends in 3, not in -3.
_NUMBER = re.compile(r"(?:(?<![\w.)])-)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def score(check: str, answer: str, reference: str, tests: Sequence[str] = ()) -> float:
    """Scores one answer.

    Args:
        check: `exact`, `json`, `f1`, `number` or `tests`.
        answer: what the model wrote.
        reference: what it should have written; ignored by `tests`.
        tests: Python asserts, for `tests` only.

    Returns:
        0 (wrong) to 1 (right).

    Raises:
        DataError: an unknown check, or a reference that the check cannot read.
    """
    match check:
        case "exact":
            return exact(answer, reference)
        case "json":
            return json_score(answer, reference)
        case "f1":
            return token_f1(answer, reference)
        case "number":
            return number(answer, reference)
        case "tests":
            return tests_pass(answer, tests)
    raise DataError(f"unknown check {check!r}; use one of {', '.join(CHECKS)}")


def settled(check: str, beginning: str, reference: str) -> float | None:
    """The score of every answer that begins so; None where it depends on the rest."""
    if check == "exact" and not reference.strip().startswith(beginning.strip()):
        return 0.0
    if check == "json" and is_json(reference) and _never_json(beginning):
        return 0.0
    return None


def exact(answer: str, reference: str) -> float:
    """1.0 if the two are the same text once white space around them is trimmed."""
    return float(answer.strip() == reference.strip())


def token_f1(answer: str, reference: str) -> float:
    """F1 of the bags of white-space separated tokens (SQuAD, Rajpurkar et al. 2016, section 6.1,
    without its normalisation of case and articles). Two empty texts score 1.0."""
    return _bag_f1(answer.split(), reference.split())


def json_score(answer: str, reference: str) -> float:
    """Slot F1 of two JSON values: each leaf, with the path to it, is a slot.

    1.0 if and only if both are equal as JSON values (the order of an object's keys and 1 against
    1.0 make no difference; `true` is not 1). An answer that is no JSON scores 0.0.

    Raises:
        DataError: the reference is no JSON.
    """
    right = _parse_json(reference)
    if right is None:
        raise DataError(
            f"the reference {_shorten(reference)} is no JSON, but its check is `json`; "
            "mend the row's completion or its check"
        )
    found = _parse_json(answer)
    if found is None:
        return 0.0
    return _bag_f1(_slots(found[0]), _slots(right[0]))


def is_json(text: str) -> bool:
    """Whether a text is one JSON value (NaN and Infinity are not JSON)."""
    return _parse_json(text) is not None


def number(answer: str, reference: str) -> float:
    """1.0 if both end in the same number (see `final_number`).

    Raises:
        DataError: there is no number in the reference.
    """
    right = final_number(reference)
    if right is None:
        raise DataError(
            f"the reference {_shorten(reference)} holds no number, but its check is `number`; "
            "mend the row's completion or its check"
        )
    return float(final_number(answer) == right)


def tests_pass(answer: str, tests: Sequence[str]) -> float:
    """1.0 if every assert holds after running the answer as Python, in a process of its own with
    a time limit of 5 seconds and limits on memory and files (see `sandbox`)."""
    return float(asserts_hold(answer, tests))


def final_number(text: str) -> Decimal | None:
    """The first number after the last `####` (GSM8K's mark), else the last number of the text;
    commas between digits are dropped. None where there is none."""
    _, mark, tail = text.rpartition("####")
    found = _NUMBER.findall(tail)
    if not found:
        return None
    return Decimal((found[0] if mark else found[-1]).replace(",", ""))


def _bag_f1(found: Iterable[Hashable], right: Iterable[Hashable]) -> float:
    found_bag, right_bag = Counter(found), Counter(right)
    total = found_bag.total() + right_bag.total()
    if total == 0:
        return 1.0
    return 2 * (found_bag & right_bag).total() / total


def _slots(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[Hashable]:
    """Leaves with their paths; an empty list or object is a leaf too, so that it counts."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _slots(inner, (*path, key))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from _slots(inner, (*path, index))
    elif isinstance(value, dict | list):
        yield path, type(value).__name__
    else:
        # Python holds True == 1; JSON does not.
        yield path, isinstance(value, bool), value


def _parse_json(text: str) -> tuple[Any] | None:
    """The value in a tuple, since `null` is a value; None where the text is no JSON."""
    try:
        return (json.loads(text, parse_constant=_refuse),)
    except (ValueError, RecursionError):  # a model may well write ten thousand brackets
        return None


_WORDS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
_IN_NUMBERS = frozenset("0123456789.eE+-")
_BROKEN = ("Expecting ':'", "Expecting property name", "Illegal trailing", "Invalid control")


def _never_json(beginning: str) -> bool:
    """Whether no text that begins so is a JSON value. Says so only where it is certain: where the
    parser stops at something that is there, and that nothing behind it could mend."""
    try:
        json.loads(beginning)
        return False
    except json.JSONDecodeError as error:
        rest, what = beginning[error.pos :], error.msg
    except (ValueError, RecursionError):
        return False
    if not rest.strip():
        return False
    if what == "Expecting value":
        return not any(word.startswith(rest) for word in _WORDS)
    if what == "Extra data" or what.startswith("Expecting ','"):
        # "1" may be the beginning of "1.5", and `.5` is where the parser stops until the 5 comes.
        return rest[0] not in _IN_NUMBERS
    return what.startswith(_BROKEN)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _shorten(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[:limit] + "...")
