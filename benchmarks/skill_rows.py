"""What the learning benchmark learns: the rows of a skill, as a file and as tokens, and the pool
that they come to.

Knows rows and how a pool splits them; measures nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import workload
from harness import Options

from dylora_moe.build.pool import Pool
from dylora_moe.config import LearnSettings
from dylora_moe.foundation.base import Base
from dylora_moe.records import Arrival, Example
from dylora_moe.text.reading import read_examples
from dylora_moe.text.split import split
from dylora_moe.text.synthetic import SKILLS, generate
from dylora_moe.text.template import Encoded, PromptFormat, encode_all

FORMAT = PromptFormat("plain", None)
NEW, OLDER = "wikisql", ("snips", "scan")
ROWS = 192
"""Rows of the new skill where nobody says how many."""


@dataclass(frozen=True)
class Task:
    """What is learned.

    Attributes:
        older: skills that the pool has when it comes.
        rows: the file's, of which some validate.
        test: rows for the held-out loss.
    """

    older: Mapping[str, tuple[Example, ...]]
    rows: tuple[Example, ...]
    test: tuple[Example, ...]


@dataclass(frozen=True)
class Sides:
    """A task's rows as tokens, split as the pool splits them."""

    train: list[Encoded]
    validation: list[Encoded]
    test: list[Encoded]


def task(options: Options) -> Task:
    """Rows of a new skill (`Options.rows`) beside two older ones; 200 to test it on."""
    few, many, test = (24, 32, 8) if options.toy else (64, options.rows or ROWS, 200)
    if options.data is None:
        *older, new = list(SKILLS)[:3]
        rows = generate(new, many + test)
        return Task(
            {name: tuple(generate(name, few)) for name in older},
            tuple(rows[:many]),
            tuple(rows[many:]),
        )
    folder = Path(options.data)
    return Task(
        {name: _read(folder / name / "train.jsonl", few) for name in OLDER},
        _read(folder / NEW / "train.jsonl", many),
        _read(folder / NEW / "test.jsonl", test),
    )


def write(work: Task, path: Path) -> Path:
    """The new skill's rows as a JSONL file, as it would come to a pool."""
    lines = [
        json.dumps(
            {
                "messages": [{"role": t.role, "content": t.content} for t in one.turns],
                "check": one.check,
                **({"tests": list(one.tests)} if one.tests else {}),
            }
        )
        for one in work.rows
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def encoded(options: Options, base: Base) -> Sides:
    """The task's rows as tokens."""
    work = task(options)
    parts = split(list(work.rows), LearnSettings().validation_fraction)
    train, validation, test = (
        encode_all(part, base.tokenizer, FORMAT, None)[0] for part in (*parts, work.test)
    )
    return Sides(train, validation, test)


def _read(path: Path, count: int) -> tuple[Example, ...]:
    found = tuple(read_examples(path))[:count]
    if len(found) < count:
        raise SystemExit(f"{path} has {len(found)} rows and {count} are needed; take fewer --rows")
    return found


@contextmanager
def pool(options: Options, work: Task) -> Iterator[Pool]:
    """A pool with the older skills in it, made by a process that leaves nothing in this one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool"
        maker = get_context("spawn").Process(target=_make, args=(options, work, path))
        maker.start()
        maker.join()
        with Pool.open(path, device=options.device, dtype=options.dtype) as opened:
            yield opened


def _make(options: Options, work: Task, path: Path) -> None:
    base = str(workload.save_toy(path.parent / "base")) if options.toy else "smollm2-135m"
    place: dict[str, Any] = {"device": options.device, "dtype": options.dtype}
    with Pool.create(path, base, own_prompts=32, **place) as made:
        quick = LearnSettings(generate_scores=0, seeding=None)
        for name, examples in work.older.items():
            made.learn_arrivals([Arrival(name, examples)], as_new=True, settings=quick)
