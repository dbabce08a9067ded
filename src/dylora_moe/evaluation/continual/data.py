"""Rows of skills to learn and to test on, read from a folder and picked by a seed.

The folder holds `<skill>/train.jsonl` and `<skill>/test.jsonl`, perhaps with
`<skill>/out_of_scope.jsonl`, prompts that belong to no skill. Knows nothing of streams.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dylora_moe.errors import DataError
from dylora_moe.records import Example, Turn
from dylora_moe.text.prompts import read_prompts
from dylora_moe.text.reading import read_examples

_TRAIN, _TEST, _OUT_OF_SCOPE = "train.jsonl", "test.jsonl", "out_of_scope.jsonl"


@dataclass(frozen=True)
class SkillRows:
    """What there is of one skill.

    Attributes:
        name: of the skill; its folder's.
        train: rows to learn.
        test: rows to score; no prompt of theirs is in `train`.
        out_of_scope: prompts that look like the skill's and are not, in the seed's order; may be
            empty.
    """

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    out_of_scope: tuple[str, ...] = ()


def read_skills(
    folder: Path,
    *,
    train: int,
    test: int,
    seed: int = 0,
    names: Sequence[str] | None = None,
    at_least: int = 2,
) -> tuple[SkillRows, ...]:
    """Reads `train` and `test` rows of each skill.

    A row's place is decided by the seed and its content, so the pick is the same in any order of
    the file, and fewer rows are the first of more; a row that comes twice counts once. A training
    row whose prompt is in the test file is never picked, however many test rows are asked for.

    Args:
        folder: with a folder for each skill.
        train: rows to learn of each skill.
        test: rows to score of each skill.
        seed: of the pick.
        names: the skills wanted, in this order; None for all, in the order of their names.
        at_least: how many skills there must be.

    Raises:
        DataError: a folder or file is missing, there are too few skills or too few rows, a row
            cannot be read (`file:line`), or a row is in two skills.
    """
    if train < 1 or test < 1:
        raise DataError(f"{train} training and {test} test rows a skill; ask for at least one")
    found = _skills_in(folder)
    wanted = found if names is None else list(names)
    for name in wanted:
        if name not in found:
            known = ", ".join(found) or "none"
            raise DataError(f"{folder}: no skill {name!r} with {_TRAIN} in it; there is: {known}")
    if len(set(wanted)) < len(wanted):
        raise DataError(f"a skill is named twice in {', '.join(wanted)}; name each one once")
    if len(wanted) < at_least:
        raise DataError(
            f"{folder}: {len(wanted)} skills, {at_least} needed; a skill is a folder with {_TRAIN} "
            f"and {_TEST}"
        )
    skills = tuple(_read(folder / name, train, test, seed) for name in wanted)
    _refuse_shared(skills)
    return skills


def _skills_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name one with <skill>/{_TRAIN} in it")
    return sorted(path.parent.name for path in folder.glob(f"*/{_TRAIN}"))


def _read(folder: Path, train: int, test: int, seed: int) -> SkillRows:
    tests = read_examples(folder / _TEST)
    tested = {asked_of(row) for row in tests}
    trains = [row for row in read_examples(folder / _TRAIN) if asked_of(row) not in tested]
    strangers = folder / _OUT_OF_SCOPE
    return SkillRows(
        folder.name,
        _pick(trains, train, seed, folder / _TRAIN),
        _pick(tests, test, seed, folder / _TEST),
        tuple(_shuffled(read_prompts(strangers), seed)) if strangers.exists() else (),
    )


def _shuffled(prompts: Iterable[str], seed: int) -> list[str]:
    """As rows are, by the seed and their content: the first of them are a fair sample."""
    return sorted(prompts, key=lambda prompt: hashlib.sha256(f"{seed}:{prompt}".encode()).digest())


def asked_of(row: Example) -> tuple[Turn, ...]:
    """What is before the answer; the whole of plain text, where nothing is."""
    return row.turns[:-1] or row.turns


def _pick(rows: Iterable[Example], count: int, seed: int, path: Path) -> tuple[Example, ...]:
    ranked = sorted(rows, key=lambda row: hashlib.sha256(f"{seed}:{row.key}".encode()).digest())
    if len(ranked) < count:
        raise DataError(
            f"{path}: {len(ranked)} rows that can be used, {count} wanted; ask for fewer or bring "
            "more rows"
        )
    return tuple(ranked[:count])


def _refuse_shared(skills: Sequence[SkillRows]) -> None:
    owners: dict[str, str] = {}
    for skill in skills:
        for row in (*skill.train, *skill.test):
            owner = owners.setdefault(row.key, skill.name)
            if owner != skill.name:
                raise DataError(
                    f"{row.origin}: the row is in {owner} too; its skill could not be told, so "
                    "remove it from one of them"
                )
