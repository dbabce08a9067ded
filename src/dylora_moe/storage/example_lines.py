"""Examples as lines of JSONL, the same bytes every time. Pure: knows no files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dylora_moe.errors import ArtifactError, DataError
from dylora_moe.records import Example, Turn


def write_lines(
    examples: Iterable[Example], before: Mapping[str, Any], after: Mapping[str, Any]
) -> bytes:
    """One line an example: the fields `before`, its own, the fields `after`.

    Raises:
        DataError: for text that is not Unicode (a lone half of a surrogate pair).
    """
    lines = []
    for example in examples:
        values = {**before, **_values(example), **after}
        try:
            lines.append(json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode())
        except UnicodeEncodeError as error:
            raise DataError(
                f"{example.origin or 'a row'} holds text that is not valid Unicode "
                f"({error.reason}); mend or remove the row"
            ) from error
    return b"".join(line + b"\n" for line in lines)


def read_lines(body: bytes, path: str) -> Iterator[tuple[Example, dict[str, Any]]]:
    """The examples with all fields of their lines; the origin is `path:line`.

    Raises:
        ArtifactError: if a line is not one that `write_lines` wrote.
    """
    # By the newline byte alone: text may hold U+2028, which `splitlines` would cut at.
    for number, line in enumerate(body.split(b"\n")[:-1], start=1):
        origin = f"{path}:{number}"
        try:
            values = json.loads(line)
            yield _example(values, origin), values
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{origin} is no stored example; restore the file from a copy of the pool"
            ) from error


def _values(example: Example) -> dict[str, Any]:
    return {
        "input_data": [{"role": t.role, "content": t.content} for t in example.turns[:-1]],
        "output_data": example.completion,
        "check": example.check,
        "tests": list(example.tests),
    }


def _example(values: Mapping[str, Any], origin: str) -> Example:
    before = tuple(Turn(each["role"], each["content"]) for each in values["input_data"])
    answer = Turn("assistant", values["output_data"])
    return Example((*before, answer), values["check"], tuple(values["tests"]), origin)
