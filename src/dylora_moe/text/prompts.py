"""Reads a file of prompts: rows that may lack the answer that training data has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dylora_moe.errors import DataError
from dylora_moe.records import Example
from dylora_moe.text.formats import recognise, to_example
from dylora_moe.text.reading import read_examples


def read_prompts(path: Path) -> list[str]:
    """Prompts in their order: the lines of a .txt, or the rows of a .jsonl.

    A row is a text, an object with `prompt` (or `question`, `query`, `text`), or a row of any
    format that training data may have, whose answer is then left out.

    Raises:
        DataError: the file is missing, empty, not UTF-8 or corrupt; `file:line` first.
    """
    try:
        body = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    lines = [(number, line) for number, line in enumerate(body.split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: the file holds no prompts; write at least one")
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return [_prompt(line, f"{path}:{number}") for number, line in lines]
    return [line.rstrip("\r") for _, line in lines]


def read_rows_or_prompts(path: Path) -> tuple[list[str], list[Example]]:
    """Prompts, and the rows themselves where every one of them has an answer.

    Raises:
        DataError: as `read_prompts`.
    """
    prompts = read_prompts(path)
    if path.suffix.lower() == ".txt":
        return prompts, []
    try:
        return prompts, read_examples(path)
    except DataError:
        # Rows without answers are prompts, which is all that routing needs.
        return prompts, []


def _prompt(line: str, origin: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{origin}: corrupt JSON ({error.msg}); mend or remove the row") from None
    except RecursionError:
        raise DataError(
            f"{origin}: the JSON is nested too deeply; mend or remove the row"
        ) from None
    text = row if isinstance(row, str) else _of_row(row, origin)
    if not text.strip():
        raise DataError(f"{origin}: the prompt is empty; fill it or remove the row")
    return text


def _of_row(row: Any, origin: str) -> str:
    if not isinstance(row, dict):
        raise DataError(f'{origin}: a row must be a text or an object like {{"prompt": ...}}')
    for column in ("prompt", "question", "query", "text"):
        if isinstance(row.get(column), str):
            return str(row[column])
    filled = {"output": "-", **row} if "instruction" in row else row
    try:
        return to_example(filled, recognise(filled)).prompt
    except DataError as error:
        raise DataError(f"{origin}: {error}") from None
