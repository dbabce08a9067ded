"""Text of no skill: what a learner may not get worse at.

Passages of books and speeches in the public domain, the same everywhere, and test rows of the
skills of a folder that the stream does not have. Knows text; knows no model.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from importlib.resources import files
from pathlib import Path

from dylora_moe.evaluation.continual.data import read_skills
from dylora_moe.records import Example, pair


@cache
def passages() -> tuple[Example, ...]:
    """Each passage cut at a word in its middle: what is before it is the prompt."""
    text = files(__package__).joinpath("neutral.txt").read_text(encoding="utf-8")
    rows = []
    for line in text.splitlines():
        words = line.split()
        half = len(words) // 2
        rows.append(pair(" ".join(words[:half]), " ".join(words[half:]), "f1"))
    return tuple(rows)


def neutral_rows(
    folder: Path, learned: Collection[str], *, rows: int, seed: int = 0
) -> tuple[Example, ...]:
    """The passages, and test rows of every skill in the folder that is not learned.

    Args:
        folder: of skills, as `data.read_skills` reads it.
        learned: the skills of the stream.
        rows: test rows of each other skill; fewer where it has fewer.
        seed: of their pick.

    Raises:
        DataError: a row cannot be read.
    """
    others = sorted(path.parent.name for path in folder.glob("*/test.jsonl"))
    found = list(passages())
    for name in others:
        if name not in learned and (folder / name / "train.jsonl").exists():
            lines = (folder / name / "test.jsonl").read_bytes().splitlines()
            count = sum(1 for line in lines if line.strip())
            (skill,) = read_skills(
                folder, train=1, test=min(rows, count), seed=seed, names=[name], at_least=1
            )
            found += skill.test
    return tuple(found)
