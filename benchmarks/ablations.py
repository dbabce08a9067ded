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
import math
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from machine import machine, versions
from measured import Row

from dylora_moe.config import LearnSettings
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
AS_IT_IS = "as it is"
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


@dataclass(frozen=True)
class Run:
    """What came out of one training.

    Attributes:
        variant, skill, rows, seed: of what.
        loss: over the test rows, nats, token mean.
        right: share of the test rows whose greedy answer is the expected one to the letter.
        tokens: of all updates.
        seconds: of the training.
    """

    variant: str
    skill: str
    rows: int
    seed: int
    loss: float
    right: float
    tokens: int
    seconds: float


def run(folder: Path, name: str, rows: int, test: int, seed: int) -> Run:
    """Trains one skill alone in the variant of this name."""
    variant = VARIANTS[name]
    base = load_base(DEFAULT_BASE, tap=variant.tap)
    settings = with_values(START, variant.values).model_copy(update={"seed": seed})
    found = Ground(base).train(encoded(base, folder, rows, test, seed), settings)
    loss = sum(a * b for a, b in zip(found.judged, found.weights, strict=True))
    return Run(
        name, folder.name, rows, seed, loss / sum(found.weights),
        statistics.fmean(found.exact), found.tokens, found.seconds,
    )  # fmt: skip


def missing(
    done: Sequence[Run], variants: Sequence[str], skills: Sequence[str], rows: int, seeds: int
) -> Iterator[tuple[str, str, int]]:
    """Variant, skill and seed of what is yet to be run; whole seeds first."""
    there = {(one.variant, one.skill, one.seed) for one in done if one.rows == rows}
    for seed in range(seeds):
        for variant in variants:
            for skill in skills:
                if (variant, skill, seed) not in there:
                    yield variant, skill, seed


def compared(runs: Sequence[Run]) -> list[Row]:
    """Each variant over what it is by default: loss by the geometric mean over skills and seeds,
    with the interval of a t test on its logarithm; right answers by the mean difference."""
    found = []
    for rows in sorted({one.rows for one in runs}):
        usual = {(o.skill, o.seed): o for o in runs if o.variant == AS_IT_IS and o.rows == rows}
        for name in VARIANTS:
            pairs = [
                (one, usual[one.skill, one.seed])
                for one in runs
                if one.variant == name and one.rows == rows and (one.skill, one.seed) in usual
            ]
            if name != AS_IT_IS and pairs:
                found += _rows(f"{name}, {rows} rows", pairs)
    return found


def _rows(name: str, pairs: Sequence[tuple[Run, Run]]) -> list[Row]:
    loss = _interval([math.log(a.loss / b.loss) for a, b in pairs])
    right = _interval([100 * (a.right - b.right) for a, b in pairs])
    seconds = _interval([math.log(a.seconds / b.seconds) for a, b in pairs])
    by_ratio = [tuple(math.exp(x) for x in found) for found in (loss, seconds)]
    note = f"{len(pairs)} trainings each"
    said = f"{name} / {AS_IT_IS}"
    return [
        _row(f"held-out loss, {said}", by_ratio[0], note),
        replace(_row(f"right answers, {name} less {AS_IT_IS}, points", right, note),
                direction="at least"),
        _row(f"seconds of training, {said}", by_ratio[1], note),
    ]  # fmt: skip


def _row(measure: str, found: Sequence[float], note: str) -> Row:
    value, low, high = found
    return Row(measure, value, low=low, high=high, note=note, interval=True)


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean with the ends of its 95% interval by Student's t; both infinite for one value."""
    middle = statistics.fmean(values)
    if len(values) < 2:
        return middle, middle, middle
    from scipy.stats import t

    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(t.ppf(0.975, len(values) - 1)) * error
    return middle, middle - half, middle + half


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


def document(runs: Sequence[Run], rows: Sequence[Row], test: int) -> dict[str, Any]:
    """The result file."""
    return {
        "benchmark": "ablations",
        "title": "Choices in training an expert, one at a time",
        "compared": "one skill trained alone in a variant and by default, the same rows in the "
        f"same order; {test} test rows; means over {', '.join(sorted({o.skill for o in runs}))}",
        "command": "python benchmarks/ablations.py --data path/to/skills --runs runs.jsonl",
        "date": time.strftime("%Y-%m-%d"),
        "device": "cpu",
        "machine": machine("cpu"),
        "versions": versions(),
        "rows": [asdict(one) for one in rows],
        "runs": [asdict(one) for one in runs],
    }


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
    todo = list(missing(runs, names, arguments.skills, arguments.rows, arguments.seeds))
    for name, skill, seed in todo:
        one = run(arguments.data / skill, name, arguments.rows, arguments.test, seed)
        runs.append(one)
        with arguments.runs.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(one)) + "\n")
        print(
            f"{name:18} {skill:10} seed {seed}: loss {one.loss:.4f}, right {one.right:.1%}, "
            f"{one.tokens} tokens, {one.seconds:.1f} s",
            flush=True,
        )
    rows = compared(runs)
    for row in rows:
        print(f"{row.measure}: {row.value:.4f} [{row.low:.4f}, {row.high:.4f}]  {row.note}")
    if arguments.out is not None:
        text = json.dumps(document(runs, rows, arguments.test), indent=1, ensure_ascii=False)
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
