"""What an adapter answered so far, kept in a file beside it, so that no row is asked twice.

Knows files, rows and results; knows no model. A file that cannot be read holds nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from dylora_moe.evaluation.continual.results import RowResult
from dylora_moe.evaluation.files import write_whole
from dylora_moe.records import Example


def asked_key(skill: str, row: Example) -> str:
    """Of all that decides a row's result beside the adapter: whose it is, its turns, and how its
    answer is scored."""
    facts = json.dumps([skill, row.key, row.check, *row.tests])
    return hashlib.sha256(facts.encode()).hexdigest()


def known(path: Path) -> dict[str, RowResult]:
    """The results in a file, by `asked_key`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: RowResult(**row) for key, row in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def note(path: Path, answers: Mapping[str, RowResult]) -> None:
    """Writes results, by `asked_key`; the file appears whole or not at all."""
    body = {key: asdict(row) for key, row in answers.items()}
    write_whole(path, json.dumps(body) + "\n")
