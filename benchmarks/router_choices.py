"""What choices about routing give and cost, one at a time, the others as they are by default.

    python benchmarks/router_choices.py --data path/to/skills --features features.pt

`--data` is a folder with `<skill>/{train,test}.jsonl`. Features are taken once from the base and
kept in the file that `--features` names, which `novelty_choices.py` reads too; no expert learns.
Each seed fits on other rows of each skill and is judged by the same test rows. Cross-entropy and
calibration error are those of the probabilities; the weights decide which experts answer. With
`--out benchmarks/results/router_choices.json` the table is on the page of results.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from choice_features import FOREIGN, SKILLS, Stored, keep, kept, keys_of, rows_of, take
from choices_table import router_rows
from machine import machine, versions
from numpy.typing import NDArray
from router_fitting import Fitted, Seen, fitted, seen
from router_variants import VARIANTS, Fit, Variant

from dylora_moe.build.making import OWN_PROMPTS
from dylora_moe.foundation.base import DEFAULT_BASE, load_base
from dylora_moe.scoring.bootstrap import Paired, macro_bootstrap
from dylora_moe.scoring.calibration import expected_calibration_error

NEAR = ("snips", "clinc150")
"""Skills that are easily taken for each other."""
_LEAST = 1e-3
"""What a weight counts as at least in the cross-entropy of the weights: a wrong hard choice costs
5 to 20 times the loss (docs/lab-log.md), not infinitely much."""
Numbers = Mapping[str, NDArray[np.float64]]
"""Of each test row, by what was measured."""


def of_rows(one: Seen) -> dict[str, NDArray[np.float64]]:
    """What a variant comes to on each test row."""
    right = one.right.numpy()
    rows = np.arange(len(right))
    weights, probabilities = one.weights.double().numpy(), one.probabilities.double().numpy()
    given, likely = weights[rows, right], probabilities[rows, right + 1]
    best = weights.argmax(1) == right
    return {
        "hit": (best & (given > 0)).astype(np.float64),
        "cross_entropy": -np.log(np.maximum(likely, 1e-30)),
        "weight": given,
        "weight_entropy": -np.log(np.maximum(given, _LEAST)),
        "experts": (weights > 0).sum(1).astype(np.float64),
        "to_none": (weights.sum(1) == 0).astype(np.float64),
    }


def measure(stored: Stored, variants: Sequence[Variant], seeds: int, rows: int) -> dict[str, Any]:
    """Every variant under every seed.

    Args:
        stored: `seeds * rows` rows of each skill to fit on.
        variants: the first is what the others are held against.
        seeds: how many.
        rows: of each skill that a seed fits on.

    Returns:
        By variant, its figures as JSON values.
    """
    raw: dict[str, list[Numbers]] = {one.name: [] for one in variants}
    more: dict[str, list[dict[str, Any]]] = {one.name: [] for one in variants}
    right = np.zeros(0, dtype=np.int64)
    for seed in range(seeds):
        fits: dict[Fit, Fitted] = {}
        for variant in variants:
            if variant.fit not in fits:
                # Two at a time: a router of four blocks holds some 100 MB.
                usual = {how: one for how, one in fits.items() if how == Fit()}
                place = slice(seed * rows, (seed + 1) * rows)
                made = fitted(stored, variant.fit, place, seed, usual.get(Fit()))
                fits = {variant.fit: made, **usual}
            found = fits[variant.fit]
            one = seen(stored, found, variant, seed)
            right = one.right.numpy()
            raw[variant.name].append(of_rows(one))
            error = expected_calibration_error(one.probabilities.double().numpy(), right + 1)
            more[variant.name].append(
                {
                    "calibration_error": error,
                    "foreign": dict(one.foreign),
                    "seconds": found.seconds,
                    "kept": found.kept,
                    "multiply_adds": found.multiply_adds,
                    "temperature": found.temperature,
                }
            )
            hit, loss = raw[variant.name][-1]["hit"], raw[variant.name][-1]["cross_entropy"]
            print(f"seed {seed}  {variant.name}: {hit.mean():.2%}, {loss.mean():.4f}", flush=True)
    first = raw[variants[0].name]
    names = list(stored.train)
    return {
        one.name: {
            "group": one.group,
            **figures(raw[one.name], more[one.name], right, names),
            **({} if one is variants[0] else {"over": differences(raw[one.name], first, right)}),
        }
        for one in variants
    }


def figures(
    found: Sequence[Numbers], more: Sequence[Mapping[str, Any]], right: NDArray[np.int64],
    names: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Means over the seeds; skills weigh the same."""

    def mean(what: str, skills: Sequence[str]) -> float:
        chosen = [right == names.index(name) for name in skills]
        return float(np.mean([one[what][rows].mean() for one in found for rows in chosen]))

    near = [name for name in names if name in NEAR]
    distinct = [name for name in names if name not in NEAR]
    numbers = ("calibration_error", "seconds", "kept", "multiply_adds", "temperature")
    return {
        "accuracy": {"distinct": mean("hit", distinct), "near": mean("hit", near)},
        **{what: mean(what, names) for what in found[0] if what != "hit"},
        **{what: float(np.median([one[what] for one in more])) for what in numbers},
        "foreign_to_none": {
            name: float(np.mean([one["foreign"][name] for one in more]))
            for name in more[0]["foreign"]
        },
    }


def differences(
    ours: Sequence[Numbers], usual: Sequence[Numbers], right: NDArray[np.int64]
) -> dict[str, list[float]]:
    """A variant less the default on the same rows under the same seeds, skills weighing the same:
    the mean, and the 95% interval over rows and seeds (`macro_bootstrap`)."""
    found = {}
    for what in ("hit", "cross_entropy", "weight", "weight_entropy"):
        pairs = [
            Paired(a[what][right == skill], b[what][right == skill], seed=seed, skill=str(skill))
            for seed, (a, b) in enumerate(zip(ours, usual, strict=True))
            for skill in np.unique(right)
        ]
        one = macro_bootstrap(pairs, statistic="difference")
        found[what] = [one.value, one.low, one.high]
    return found


def document(found: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """The result file."""
    return {
        "benchmark": "router_choices",
        "title": "Choices about routing, one at a time",
        "compared": f"a router of six skills in a variant and by default, the same rows; "
        f"{arguments.rows} rows of each skill to fit on, other ones under each of "
        f"{arguments.seeds} seeds, {arguments.test} to test on; prompts of mbpp and gsm8k are "
        "foreign; times are of a machine that others used",
        "command": "python benchmarks/router_choices.py --data path/to/skills --features "
        f"features.pt --rows {arguments.rows} --seeds {arguments.seeds} --test {arguments.test}",
        "date": time.strftime("%Y-%m-%d"),
        "device": "cpu",
        "machine": machine("cpu"),
        "versions": versions(),
        "rows": [asdict(row) for row in router_rows(found)],
        "choices": found,
    }


def features(arguments: argparse.Namespace) -> Stored:
    """Those of the file, which are of these very rows, or taken now."""
    counts = arguments.seeds * arguments.rows, arguments.test
    learned = rows_of(arguments.data, *counts, SKILLS)
    foreign = rows_of(arguments.data, 1, arguments.test, FOREIGN)
    found = kept(arguments.features)
    if found is not None:
        found.require(keys_of(learned, foreign), arguments.features)
        return found
    return keep(arguments.features, take(load_base(DEFAULT_BASE), learned, foreign, OWN_PROMPTS))


def parser_of(described: str | None) -> argparse.ArgumentParser:
    """The arguments that both commands have."""
    parser = argparse.ArgumentParser(description=described.splitlines()[0] if described else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True, help="file that keeps them")
    parser.add_argument("--rows", type=int, default=218, help="rows of a skill that are fitted on")
    parser.add_argument("--test", type=int, default=300, help="test rows of each skill")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None, help="the result file to write")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser_of(__doc__).parse_args(argv)
    found = measure(features(arguments), VARIANTS, arguments.seeds, arguments.rows)
    if arguments.out is not None:
        text = json.dumps(document(found, arguments), indent=1, ensure_ascii=False)
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
