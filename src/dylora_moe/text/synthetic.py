"""Synthetic skills with checkable answers, and the sample stream made of them.

Every row is drawn from a seeded generator: the same seed writes the same bytes. The answers'
forms are this project's own, so no base can know them beforehand; the prompts carry no
instruction, so the input alone tells the skills apart.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dylora_moe.errors import DataError
from dylora_moe.records import Example, pair
from dylora_moe.text.synthetic_contacts import CONTACTS
from dylora_moe.text.synthetic_dates import DATES
from dylora_moe.text.synthetic_orders import ORDERS
from dylora_moe.text.synthetic_queries import QUERIES
from dylora_moe.text.synthetic_robot import ROBOT
from dylora_moe.text.synthetic_skill import SyntheticSkill

SKILLS: dict[str, SyntheticSkill] = {
    skill.name: skill for skill in (ORDERS, ROBOT, CONTACTS, QUERIES, DATES)
}


@dataclass(frozen=True)
class StreamFile:
    """One arrival of the sample stream: which skill, in which words, with which answers."""

    name: str
    skill: str
    reworded: bool = False
    revised: bool = False


SAMPLE_STREAM = (
    StreamFile("orders", "orders"),
    StreamFile("robot", "robot"),
    StreamFile("contacts", "contacts"),
    StreamFile("queries", "queries"),
    StreamFile("robot", "robot"),
    StreamFile("orders-in-other-words", "orders", reworded=True),
    StreamFile("contacts-new-form", "contacts", revised=True),
)
"""Four skills; one that returns with fresh rows; one in other words; one whose answers changed."""


def generate(
    skill: str,
    rows: int,
    seed: int = 0,
    *,
    reworded: bool = False,
    revised: bool = False,
    exclude: Collection[str] = (),
) -> list[Example]:
    """Draws rows of one skill, no prompt twice.

    Args:
        skill: a name in `SKILLS`.
        rows: how many.
        seed: the same arguments give the same rows.
        reworded: the skill's prompts in other words; the answers keep their form.
        revised: the same prompts with answers of another form.
        exclude: prompts that must not come again.

    Raises:
        DataError: an unknown skill, fewer than one row, or more than the skill has to offer.
    """
    if skill not in SKILLS:
        raise DataError(f"unknown synthetic skill {skill!r}; use one of {', '.join(SKILLS)}")
    if rows < 1:
        raise DataError(f"{rows} rows of {skill!r} asked for; ask for at least 1")
    found = SKILLS[skill]
    rng = random.Random(f"{skill}:{seed}:{reworded}")  # a revision meets the prompts it revises
    seen = set(exclude)
    examples: list[Example] = []
    for _ in range(50 * rows + 1000):
        prompt, completion = found.draw(rng, reworded, revised)
        if prompt not in seen:
            seen.add(prompt)
            origin = f"synthetic {skill}:{len(examples) + 1}"
            examples.append(pair(prompt, completion, found.check, origin))
        if len(examples) == rows:
            return examples
    raise DataError(f"{skill!r} has no {rows} different prompts; ask for at most {len(examples)}")


def sample_stream(folder: Path, seed: int = 0, rows: int = 240) -> list[Path]:
    """Writes the sample stream, one JSONL file an arrival, numbered in order.

    No prompt appears in two files, so what returns is the skill and not its rows.

    Args:
        folder: made if it is missing; files of the same names are replaced.
        seed: the same seed writes the same bytes.
        rows: rows a file.

    Returns:
        The files in the order in which they arrive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths, seen = [], set[str]()
    for number, step in enumerate(SAMPLE_STREAM, start=1):
        examples = generate(
            step.skill,
            rows,
            seed,
            reworded=step.reworded,
            revised=step.revised,
            exclude=seen,
        )
        seen.update(example.prompt for example in examples)
        path = folder / f"{number}-{step.name}.jsonl"
        lines = [
            json.dumps(
                {"prompt": row.prompt, "completion": row.completion, "check": row.check},
                ensure_ascii=False,
            )
            for row in examples
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        paths.append(path)
    return paths
