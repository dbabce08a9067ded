"""What one choice in training an expert gives and costs, the others as they are by default.

    python benchmarks/ablations.py --data path/to/skills --runs runs.jsonl
    python benchmarks/ablations.py --data path/to/skills --runs runs.jsonl --variants "rates x 2"

`--data` is a folder with `<skill>/{train,test}.jsonl`. Each skill is trained alone in each variant,
from the same rows in the same order, with the phases of a new expert and no neighbour, and measured
on test rows. What was run stands in `--runs` and is not run again, so that variants, skills and
seeds can be added one after the other; the table is of all that is in it. About 40 s each at 256
rows; times in it are a busy machine's where it was busy.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ablations_table import AS_IT_IS, Run, compared, rows
from machine import machine, versions

from dylora_moe.config import LearnSettings
from dylora_moe.errors import TrainingError
from dylora_moe.foundation.base import DEFAULT_BASE, Base, load_base
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.text.reading import read_examples
from dylora_moe.text.split import split
from dylora_moe.text.template import PromptFormat, encode_all
from dylora_moe.training.rows import Rows
from dylora_moe.tuning.material import Skill
from dylora_moe.tuning.space import SPACE, Value, values_of, with_values
from dylora_moe.tuning.trials import Ground

SKILLS = ("wikisql", "snips", "nl2bash", "clinc150")
FORMAT = PromptFormat("plain", None)
START = LearnSettings()


@dataclass(frozen=True)
class Variant:
    """How an expert is trained otherwise.

    Attributes:
        values: settings by their dotted keys.
        tap: blocks below the tap; a quarter of the base's where None.
    """

    values: Mapping[str, Value] = field(default_factory=dict)
    tap: int | None = None


def rates(factor: float) -> Variant:
    """Both phases' learning rates, times this."""
    keys = ("consolidation.learning_rate", "seeding.learning_rate")
    usual = values_of(START, SPACE)
    return Variant({key: float(usual[key]) * factor for key in keys})


def only(key: str, value: Value) -> Variant:
    return Variant({key: value})


VARIANTS: Mapping[str, Variant] = {
    AS_IT_IS: Variant(),
    "rates x 0.5": rates(0.5),
    "rates x 1.5": rates(1.5),
    "rates x 2": rates(2.0),
    "tap 4": Variant(tap=4),
    "tap 10": Variant(tap=10),
    "tap 12": Variant(tap=12),
    "tap 15": Variant(tap=15),
    "attention alone": only("expert.targets", "attention"),
    "rank 2": only("expert.rank", 2),
    "rank 4": only("expert.rank", 4),
    "rank 16": only("expert.rank", 16),
    "rank 32": only("expert.rank", 32),
    "no seeding": only("seeding", False),
    "2 epochs": only("consolidation.epochs", 2.0),
    "5 epochs": only("consolidation.epochs", 5.0),
    "4 rows a step": only("consolidation.batch_size", 4),
    "16 rows a step": only("consolidation.batch_size", 16),
}


def run(folder: Path, name: str, rows: int, test: int, seed: int) -> Run:
    """Trains one skill alone in the variant of this name."""
    variant = VARIANTS[name]
    base = load_base(DEFAULT_BASE, tap=variant.tap)
    settings = with_values(START, variant.values).model_copy(update={"seed": seed})
    found = Ground(base).train(encoded(base, folder, rows, test, seed), settings)
    loss = sum(a * b for a, b in zip(found.judged, found.weights, strict=True))
    return Run(
        name, folder.name, rows, seed, loss / sum(found.weights),
        statistics.fmean(found.exact), found.tokens, found.seconds, test,
    )  # fmt: skip


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


def encoded(base: Base, folder: Path, count: int, test: int, seed: int) -> Skill:
    """A skill's rows as a pool splits them, judged by its test rows."""
    rows = list(read_examples(folder / "train.jsonl"))
    # The first seed takes the first rows, as the other benchmarks do.
    if seed:
        random.Random(seed).shuffle(rows)
    own, watched = split(rows[:count], START.validation_fraction)
    asked = list(read_examples(folder / "test.jsonl"))[:test]
    parts = [encode_all(part, base.tokenizer, FORMAT, None)[0] for part in (own, watched, asked)]
    return Skill(folder.name, *(Rows(tuple(part), TrunkCache(base, part)) for part in parts))


def read(path: Path) -> list[Run]:
    """What was run before."""
    if not path.exists():
        return []
    return [Run(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def document(runs: Sequence[Run]) -> dict[str, Any]:
    """The result file."""
    return {
        "benchmark": "ablations",
        "title": "Choices in training an expert, one at a time",
        "compared": "one skill trained alone in a variant and by default, the same rows in the "
        f"same order; {_all(o.test for o in runs)} test rows; means over "
        f"{_all(o.skill for o in runs)}; seeds {_all(o.seed for o in runs)}",
        "command": "python benchmarks/ablations.py --data path/to/skills --runs runs.jsonl "
        "--variants " + " ".join(f'"{name}"' for name in dict.fromkeys(o.variant for o in runs)),
        "date": time.strftime("%Y-%m-%d"),
        "device": "cpu",
        "machine": machine("cpu"),
        "versions": versions(),
        "rows": [asdict(one) for one in rows(runs)],
        "runs": [asdict(one) for one in runs],
    }


def _all(found: Iterable[object]) -> str:
    return ", ".join(str(one) for one in sorted(set(found), key=str))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="JSONL of what was run")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--skills", nargs="+", default=list(SKILLS))
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--test", type=int, default=200, help="test rows of each skill")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="the result file to write")
    arguments = parser.parse_args(argv)
    names = [AS_IT_IS, *(name for name in arguments.variants if name != AS_IT_IS)]
    runs = read(arguments.runs)
    todo = list(
        missing(runs, names, arguments.skills, arguments.rows, arguments.seeds, arguments.test)
    )
    for name, skill, seed in todo:
        try:
            one = run(arguments.data / skill, name, arguments.rows, arguments.test, seed)
        except TrainingError as error:
            print(f"{name:18} {skill:10} seed {seed}: {error}", flush=True)
            continue
        runs.append(one)
        with arguments.runs.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(one)) + "\n")
        print(
            f"{name:18} {skill:10} seed {seed}: loss {one.loss:.4f}, right {one.right:.1%}, "
            f"{one.tokens} tokens, {one.seconds:.1f} s",
            flush=True,
        )
    for one in compared(runs):
        print(
            f"{one.variant}, {one.rows} rows: loss {_shown(one.loss)} of what it is, "
            f"right {_shown(one.right)} points, tokens {one.tokens:.2f}; "
            f"{len(one.pairs)} trainings each"
        )
    if arguments.out is not None:
        text = json.dumps(document(runs), indent=1, ensure_ascii=False)
        arguments.out.write_text(text + "\n", encoding="utf-8")


def _shown(found: Sequence[float]) -> str:
    return f"{found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}]"


if __name__ == "__main__":
    main()
