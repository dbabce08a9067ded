"""Tiny skills that never were, as rows and as a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from dylora_moe.evaluation.continual.data import SkillRows
from dylora_moe.records import Example, pair

NAMES = ("sums", "hats", "moods", "tides")


def rows_of(name: str, count: int, kind: str = "train") -> tuple[Example, ...]:
    return tuple(
        pair(f"{name} {kind} {n}", f"answer {n}", origin=f"skills/{name}/{kind}.jsonl:{n + 1}")
        for n in range(count)
    )


def skills_of(count: int, rows: int = 60) -> tuple[SkillRows, ...]:
    return tuple(
        SkillRows(name, rows_of(name, rows), rows_of(name, 8, "test")) for name in NAMES[:count]
    )


def write_rows(path: Path, rows: Iterable[Example]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": r.prompt, "completion": r.completion}) for r in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_skill(folder: Path, train: int = 30, test: int = 10) -> Path:
    """A skill's folder; its name is the skill's."""
    write_rows(folder / "train.jsonl", rows_of(folder.name, train))
    write_rows(folder / "test.jsonl", rows_of(folder.name, test, "test"))
    return folder
