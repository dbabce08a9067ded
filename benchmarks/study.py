"""Runs trainings of skills in variants, what is missing of them, and writes what they come to.

What was run stands in a file, a line each, and is not run again, so that variants, skills and seeds
can be added one after the other; the table is of all that is in it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ablations_table import AS_IT_IS, Run, compared, rows, shown
from machine import machine, versions

from dylora_moe.config import LearnSettings
from dylora_moe.errors import TrainingError
from dylora_moe.evaluation.continual.data import asked_of
from dylora_moe.foundation.base import Base
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.records import Example
from dylora_moe.text.reading import read_examples
from dylora_moe.text.split import split
from dylora_moe.text.template import PromptFormat, encode_all
from dylora_moe.training.rows import Rows
from dylora_moe.tuning.material import Skill

SKILLS = ("wikisql", "snips", "nl2bash", "clinc150")
FORMAT = PromptFormat("plain", None)


@dataclass(frozen=True)
class Study:
    """What is varied.

    Attributes:
        name: of the file and of the result.
        title, compared: for people.
        variants: names; `AS_IT_IS` is what the others are compared with.
        rows: of each skill where nobody says how many.
        run: trains the skill in this folder in a variant, on so many rows, judged by so many test
            rows, with this seed.
    """

    name: str
    title: str
    compared: str
    variants: tuple[str, ...]
    rows: int
    run: Callable[[Path, str, int, int, int], Run]


def missing(
    done: Sequence[Run],
    variants: Sequence[str],
    skills: Sequence[str],
    rows: int,
    seeds: int,
    test: int = 200,
) -> Iterator[tuple[str, str, int]]:
    """Variant, skill and seed of what is yet to be run; whole seeds first."""
    there = {
        (one.variant, one.skill, one.seed) for one in done if (one.rows, one.test) == (rows, test)
    }
    for seed in range(seeds):
        for variant in variants:
            for skill in skills:
                if (variant, skill, seed) not in there:
                    yield variant, skill, seed


def drawn(folder: Path, count: int, seed: int) -> list[Example]:
    """The first training rows of a skill, or as many in an order of the seed's; none whose prompt
    is in the test file."""
    tested = {asked_of(row) for row in read_examples(folder / "test.jsonl")}
    rows = [row for row in read_examples(folder / "train.jsonl") if asked_of(row) not in tested]
    # The first seed takes the first rows, as the other benchmarks do.
    if seed:
        random.Random(seed).shuffle(rows)
    return rows[:count]


def encoded(base: Base, folder: Path, count: int, test: int, seed: int) -> Skill:
    """A skill's rows as a pool splits them, judged by its test rows."""
    own, watched = split(drawn(folder, count, seed), LearnSettings().validation_fraction)
    asked = list(read_examples(folder / "test.jsonl"))[:test]
    return Skill(folder.name, *(cached(base, part) for part in (own, watched, asked)))


def cached(base: Base, examples: Sequence[Example]) -> Rows:
    """Rows with their trunk states."""
    rows = encode_all(examples, base.tokenizer, FORMAT, None)[0]
    return Rows(tuple(rows), TrunkCache(base, rows))


def read(path: Path) -> list[Run]:
    """What was run before."""
    if not path.exists():
        return []
    return [Run(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def document(study: Study, runs: Sequence[Run]) -> dict[str, Any]:
    """The result file."""
    named = " ".join(f'"{name}"' for name in dict.fromkeys(one.variant for one in runs))
    skills = _all(one.skill for one in runs)
    return {
        "benchmark": study.name,
        "title": study.title,
        "compared": f"{study.compared}; {_all(o.test for o in runs)} test rows; means over "
        f"{skills}; seeds {_all(o.seed for o in runs)}",
        "command": f"python benchmarks/{study.name}.py --data path/to/skills --runs runs.jsonl "
        f"--variants {named} --skills {skills.replace(',', '')} "
        f"--rows {_all(o.rows for o in runs)} --test {_all(o.test for o in runs)} "
        f"--seeds {len({o.seed for o in runs})}",
        "date": time.strftime("%Y-%m-%d"),
        "device": "cpu",
        "machine": machine("cpu"),
        "versions": versions(),
        "rows": [asdict(one) for one in rows(runs)],
        "runs": [asdict(one) for one in runs],
    }


def _all(found: Iterable[object]) -> str:
    return ", ".join(str(one) for one in sorted(set(found), key=str))


def main(study: Study, argv: Sequence[str] | None = None) -> None:
    """The command of a study."""
    parser = argparse.ArgumentParser(description=study.title)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="JSONL of what was run")
    parser.add_argument(
        "--variants", nargs="+", choices=study.variants, default=list(study.variants)
    )
    parser.add_argument("--skills", nargs="+", default=list(SKILLS))
    parser.add_argument("--rows", type=int, default=study.rows)
    parser.add_argument("--test", type=int, default=200, help="test rows of each skill")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="the result file to write")
    arguments = parser.parse_args(argv)
    names = [AS_IT_IS, *(name for name in arguments.variants if name != AS_IT_IS)]
    runs = read(arguments.runs)
    foreign = [one.variant for one in runs if one.variant not in study.variants]
    if foreign:
        parser.error(
            f"{arguments.runs} has '{foreign[0]}', which is no variant here; name a file of its own"
        )
    todo = list(
        missing(runs, names, arguments.skills, arguments.rows, arguments.seeds, arguments.test)
    )
    for name, skill, seed in todo:
        try:
            one = study.run(arguments.data / skill, name, arguments.rows, arguments.test, seed)
        except TrainingError as error:
            # Kept: without it the mean would be of the trainings that went well.
            one = Run(
                name, skill, arguments.rows, seed, 0.0, 0.0, 0, 0.0, arguments.test,
                failed=str(error),
            )  # fmt: skip
        runs.append(one)
        with arguments.runs.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(one)) + "\n")
        came = one.failed or (
            f"loss {one.loss:.4f}, right {one.right:.1%}, {one.tokens} tokens, {one.seconds:.1f} s"
        )
        print(f"{name:18} {skill:10} seed {seed}: {came}", flush=True)
    for found in compared(runs):
        print(
            f"{found.variant}, {found.rows} rows: loss {shown(found.loss)} of what it is, "
            f"right {shown(found.right)} points; {found.said}"
        )
    if arguments.out is not None:
        text = json.dumps(document(study, runs), indent=1, ensure_ascii=False)
        arguments.out.write_text(text + "\n", encoding="utf-8")
