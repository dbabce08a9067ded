"""The file that a pool learns from holds the very rows that the peers train on."""

from __future__ import annotations

from pathlib import Path

import skill_rows
from harness import Options

from dylora_moe.text.reading import read_examples


def test_the_file_gives_back_the_rows(tmp_path: Path) -> None:
    work = skill_rows.task(Options(toy=True))
    found = read_examples(skill_rows.write(work, tmp_path / "new.jsonl"))
    assert tuple(found) == work.rows
