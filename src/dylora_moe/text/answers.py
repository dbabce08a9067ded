"""Files that a person answers prompts in: written with room for answers, read back with them.

Knows rows of the formats that training data has; knows nothing of where the prompts came from.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from dylora_moe.errors import DataError
from dylora_moe.records import Example, Turn
from dylora_moe.text.formats import recognise, to_example

_COLUMNS = ("completion", "response", "answer", "output")


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back.

    Attributes:
        examples: rows with an answer.
        empty: rows without one.
    """

    examples: tuple[Example, ...]
    empty: int


def answer_sheet(prompts: Sequence[Sequence[Turn]], drafts: Sequence[str]) -> str:
    """Prompts as lines of JSONL with an answer each, which may be empty.

    A single question is `prompt` and `completion`; where any is a longer conversation, all are
    `messages`, since a file has one format.
    """
    plain = all(len(turns) == 1 and turns[0].role == "user" for turns in prompts)
    lines = []
    for turns, draft in zip(prompts, drafts, strict=True):
        row: dict[str, object] = {"prompt": turns[0].content, "completion": draft}
        if not plain:
            spoken = [*turns, Turn("assistant", draft)]
            row = {"messages": [{"role": t.role, "content": t.content} for t in spoken]}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


def read_answers(path: Path, prompts: Collection[tuple[Turn, ...]]) -> Answered:
    """The rows of a file that were answered.

    Args:
        path: JSONL in any format of training data.
        prompts: what may have been asked.

    Raises:
        DataError: the file is missing, not UTF-8 or corrupt; a row is malformed, or answers what
            was not asked, or what another row answers too; `file:line` first.
    """
    try:
        body = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    lines = [(f"{path}:{number}", line) for number, line in enumerate(body.split("\n"), 1)]
    found = [_read(line, origin) for origin, line in lines if line.strip()]
    return checked_answers(found, prompts)


def checked_answers(
    rows: Sequence[Example | None], prompts: Collection[tuple[Turn, ...]]
) -> Answered:
    """Rows (None: without an answer) that answer what was asked, each prompt once.

    Raises:
        DataError: one answers what was not asked, or what another one answers too.
    """
    asked, seen = set(prompts), set[tuple[Turn, ...]]()
    for row in rows:
        if row is None:
            continue
        turns = row.turns[:-1]
        where = f"{row.origin}: " if row.origin else ""
        if turns not in asked:
            raise DataError(
                f"{where}the prompt is none of this cluster; leave the prompts as they were "
                "exported, or learn the row as data of its own"
            )
        if turns in seen:
            raise DataError(f"{where}the prompt was answered before; keep one of the answers")
        seen.add(turns)
    return Answered(tuple(row for row in rows if row is not None), sum(r is None for r in rows))


def _read(line: str, origin: str) -> Example | None:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise DataError(f"{origin}: corrupt JSON; mend or remove the row") from None
    if not isinstance(row, dict):
        raise DataError(f'{origin}: a row must be an object like {{"prompt": ...}}')
    if _is_empty(row):
        return None
    try:
        kind = recognise(row)
    except DataError as error:
        raise DataError(f"{origin}: {error}") from None
    return to_example(row, kind, origin)


def _is_empty(row: dict[str, object]) -> bool:
    turns = row.get("messages")
    last = turns[-1] if isinstance(turns, list) and turns else None
    given = [row[column] for column in _COLUMNS if column in row]
    if isinstance(last, dict) and last.get("role") == "assistant":
        given = [last.get("content")]
    return bool(given) and not str(given[0] or "").strip()
