"""What one choice in training an expert gives and costs, the others as they are by default.

    python benchmarks/ablations.py --data path/to/skills --runs runs.jsonl
    python benchmarks/ablations.py --data path/to/skills --runs runs.jsonl --variants "rates x 2"

`--data` is a folder with `<skill>/{train,test}.jsonl`. Each skill is trained alone in each variant,
from the same rows in the same order, with the phases of a new expert and no neighbour, and measured
on test rows. About 40 s each at 256 rows; times in it are a busy machine's where it was busy.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ablations_table import AS_IT_IS, Run
from study import Study, encoded, main

from dylora_moe.config import LearnSettings
from dylora_moe.foundation.base import DEFAULT_BASE, load_base
from dylora_moe.tuning.space import SPACE, Value, values_of, with_values
from dylora_moe.tuning.trials import Ground

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


def growing(first: int, most: int, below: float = 0.01) -> Variant:
    """A rank that doubles from `first` to `most` after an epoch that takes less than a share off
    the loss."""
    return Variant({"expert.rank": first, "expert.max_rank": most, "expert.grow_below": below})


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
    "rank 2 to 32": growing(2, 32),
    "rank 4 to 32": growing(4, 32),
    "rank 4 to 32 at 20%": growing(4, 32, below=0.2),
    "freeze converged": only("expert.freeze_below", 0.3),
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
        operations=found.operations,
    )  # fmt: skip


STUDY = Study(
    name="ablations",
    title="Choices in training an expert, one at a time",
    compared="one skill trained alone in a variant and by default, the same rows in the same order",
    variants=tuple(VARIANTS),
    rows=256,
    run=run,
)

if __name__ == "__main__":
    main(STUDY)
