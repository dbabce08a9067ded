"""The file that a pool learns from holds the very rows that the peers train on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import skill_rows
from harness import Options

from dylora_moe.text.reading import read_examples


def test_the_file_gives_back_the_rows(tmp_path: Path) -> None:
    work = skill_rows.task(Options(toy=True))
    found = read_examples(skill_rows.write(work, tmp_path / "new.jsonl"))
    assert tuple(found) == work.rows


def written(folder: Path, name: str, count: int) -> None:
    lines = [json.dumps({"prompt": f"Say {n}", "completion": str(n)}) for n in range(count)]
    (folder / name).mkdir(parents=True)
    for part in ("train", "test"):
        (folder / name / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_as_many_rows_are_learned_as_asked_for_and_never_fewer(tmp_path: Path) -> None:
    for name in (skill_rows.NEW, *skill_rows.OLDER):
        written(tmp_path, name, 210)
    data = str(tmp_path)
    assert len(skill_rows.task(Options(data=data)).rows) == skill_rows.ROWS == 192
    assert len(skill_rows.task(Options(data=data, rows=40)).rows) == 40
    assert len(skill_rows.task(Options(rows=40)).rows) == 40
    assert len(skill_rows.task(Options(data=data, rows=40, toy=True)).rows) == 32
    with pytest.raises(SystemExit, match="has 210 rows and 211 are needed"):
        skill_rows.task(Options(data=data, rows=211))
