"""What a row of data means: recognises its format and makes an `Example` of it.

Knows single rows as dictionaries; nothing of files and nothing of tokens. Adding a format takes
one function and one line in `_FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn, get_args

from dylora_moe.errors import DataError
from dylora_moe.records import Check, Example, Role, Turn
from dylora_moe.scoring.checks import final_number, is_json

FormatName = Literal["messages", "sharegpt", "alpaca", "prompt_completion", "plain"]
Row = Mapping[str, Any]

FORMATS: dict[FormatName, str] = {
    "messages": "`messages` (a list of role/content), or `prompt` and `completion` as such lists",
    "sharegpt": "`conversations` (a list of from/value)",
    "alpaca": "`instruction`, `output` and perhaps `input`",
    "prompt_completion": "`prompt` and `completion` (or prompt/response, question/answer, "
    "query/response, input/output)",
    "plain": "`text`",
}
"""Every format with the columns it is recognised by, the most telling first."""

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("input", "output"),
)
_ALPACA_ANSWERS = ("output", "response")
_ALPACA_INPUTS = ("input", "context")


def recognise(row: Row) -> FormatName:
    """Which format a row is in, by its columns alone.

    Raises:
        DataError: no known format has these columns; the message lists those that are known.
    """
    if _is_list(row, "messages") or (_is_list(row, "prompt") and _is_list(row, "completion")):
        return "messages"
    if _is_list(row, "conversations"):
        first = next(iter(row["conversations"]), None)
        return "messages" if isinstance(first, Mapping) and "role" in first else "sharegpt"
    if "instruction" in row and _present(row, _ALPACA_ANSWERS):
        return "alpaca"
    if any(prompt in row and answer in row for prompt, answer in _PAIRS):
        return "prompt_completion"
    if "text" in row:
        return "plain"
    known = "; ".join(f"{name}: {columns}" for name, columns in FORMATS.items())
    found = ", ".join(str(column) for column in row) or "none"
    raise DataError(f"unknown columns ({found}); rename them to one of these formats: {known}")


def to_example(row: Row, kind: str, origin: str = "") -> Example:
    """Makes an example of a row.

    Args:
        row: column to value.
        kind: what `recognise` said.
        origin: `file:line`, put before every error's message.

    Raises:
        DataError: an empty or missing answer, a conversation that does not end with the
            assistant, a value that is no text, an unknown role or check.
    """
    reader = _READERS.get(kind)
    if reader is None:
        _fail(origin, f"unknown format {kind!r}; use one of {', '.join(FORMATS)}")
    turns = reader(row, origin)
    if turns[-1].role != "assistant":
        _fail(
            origin,
            f"the conversation ends with the {turns[-1].role}; "
            "the last turn must be the assistant's answer: cut the turns behind it",
        )
    for turn in turns:
        if not turn.content.strip():
            _fail_empty(turn, origin)
    tests = _tests(row, origin)
    check = _check(row, tests, turns[-1].content, origin)
    return Example(tuple(turns), check, tests, origin)


def _messages(row: Row, origin: str) -> list[Turn]:
    if _is_list(row, "messages"):
        return _turns(row["messages"], ("role", "content"), origin)
    if _is_list(row, "conversations"):
        return _turns(row["conversations"], ("role", "content"), origin)
    return _turns([*row["prompt"], *row["completion"]], ("role", "content"), origin)


def _sharegpt(row: Row, origin: str) -> list[Turn]:
    return _system(row, origin) + _turns(row["conversations"], ("from", "value"), origin)


def _alpaca(row: Row, origin: str) -> list[Turn]:
    instruction = _text(row, "instruction", origin)
    column = _present(row, _ALPACA_INPUTS)
    given = _text(row, column, origin, optional=True) if column else ""
    prompt = f"{instruction}\n{given}" if given.strip() else instruction
    answer = _text(row, _present(row, _ALPACA_ANSWERS), origin)
    return [*_system(row, origin), Turn("user", prompt), Turn("assistant", answer)]


def _prompt_completion(row: Row, origin: str) -> list[Turn]:
    prompt, answer = next(pair for pair in _PAIRS if pair[0] in row and pair[1] in row)
    return [
        *_system(row, origin),
        Turn("user", _text(row, prompt, origin)),
        Turn("assistant", _text(row, answer, origin)),
    ]


def _plain(row: Row, origin: str) -> list[Turn]:
    return [Turn("assistant", _text(row, "text", origin))]


_READERS: dict[str, Callable[[Row, str], list[Turn]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "plain": _plain,
}


def _turns(found: list[Any], columns: tuple[str, str], origin: str) -> list[Turn]:
    if not found:
        _fail(origin, "the conversation has no turns; remove the row")
    turns = []
    for number, entry in enumerate(found, start=1):
        if not isinstance(entry, Mapping) or not all(column in entry for column in columns):
            _fail(origin, f"turn {number} needs `{columns[0]}` and `{columns[1]}`")
        role = _ROLES.get(str(entry[columns[0]]).lower())
        if role is None:
            known = ", ".join(_ROLES)
            _fail(origin, f"turn {number} has the unknown role {entry[columns[0]]!r}; use {known}")
        turns.append(Turn(role, _text(entry, columns[1], origin)))
    return turns


def _system(row: Row, origin: str) -> list[Turn]:
    content = _text(row, "system", origin, optional=True) if "system" in row else ""
    return [Turn("system", content)] if content.strip() else []


def _text(row: Row, column: str, origin: str, *, optional: bool = False) -> str:
    value = row[column]
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        found = "nothing" if value is None else type(value).__name__
        _fail(origin, f"`{column}` must be text, found {found}; put the value in quotes")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair; no tokenizer takes it
        _fail(origin, f"`{column}` holds half a character (a lone surrogate); remove it")
    return value


def _tests(row: Row, origin: str) -> tuple[str, ...]:
    value = row.get("tests")
    if value is None or value == "":
        return ()
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(test, str) for test in listed):
        _fail(origin, "`tests` must be a list of Python asserts")
    return tuple(listed)


def _check(row: Row, tests: tuple[str, ...], answer: str, origin: str) -> Check:
    name = row.get("check") or ("tests" if tests else "exact")
    check = next((known for known in get_args(Check) if known == name), None)
    if check is None:
        _fail(origin, f"unknown check {name!r}; use one of {', '.join(get_args(Check))}")
    if check == "tests" and not tests:
        _fail(origin, "the check is `tests`, but there are none; add a `tests` list of asserts")
    if check == "json" and not is_json(answer):
        _fail(origin, "the check is `json`, but the answer is no JSON; mend it or use `exact`")
    if check == "number" and final_number(answer) is None:
        _fail(origin, "the check is `number`, but the answer holds none; mend it or use `exact`")
    found: Check = check
    return found


def _present(row: Row, columns: tuple[str, ...]) -> str:
    return next((column for column in columns if column in row), "")


def _is_list(row: Row, column: str) -> bool:
    return isinstance(row.get(column), list)


def _fail_empty(turn: Turn, origin: str) -> NoReturn:
    if turn.role == "assistant":
        _fail(origin, "the completion is empty; write the answer or remove the row")
    _fail(
        origin,
        f"the {'prompt' if turn.role == 'user' else turn.role + ' turn'} is empty; "
        "fill it, or use a `text` column for text without a prompt",
    )


def _fail(origin: str, message: str) -> NoReturn:
    raise DataError(f"{origin}: {message}" if origin else message)
