"""What choices about novelty give, one at a time: verdicts on streams whose features are stored.

    python benchmarks/novelty_choices.py --data path/to/skills --features features.pt

Takes the file of features that `router_choices.py` keeps, and makes it where it is not there.
Streams are those of the continual bench (160 rows a visit in batches of 60; skills in another order
under each seed). Each batch is parted by the true skills, as a pool sorts it first, and after each
verdict the library is what it should be, so that one wrong verdict makes no other. Verdicts are of
the tests alone, without the fit of an expert. With `--gradients FILE` the gradients of the first
seed's answers are taken too, and kept there: that costs the blocks above the tap on its rows. With
`--out benchmarks/results/novelty_choices.json` the table is on the page of results.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from choice_features import SKILLS, gradients, rows_of
from choices_table import novelty_rows
from jaxtyping import Float
from machine import machine, versions
from novelty_variants import (
    BATCH,
    VARIANTS,
    VISIT,
    Judged,
    Variant,
    arrivals_of,
    judged,
    measured,
)
from router_choices import features, parser_of
from torch import Tensor

from dylora_moe.evaluation.continual.data import SkillRows
from dylora_moe.evaluation.continual.streams import Stream, blurred, returning
from dylora_moe.foundation.base import DEFAULT_BASE
from dylora_moe.records import Interval
from dylora_moe.scoring.bootstrap import paired_bootstrap
from dylora_moe.scoring.detection import auroc


def streams(skills: Sequence[SkillRows], seed: int) -> dict[str, Stream]:
    """The blurred stream and the returning one, which begins with the very batches of the hard
    one."""
    order = list(skills)
    if seed:
        random.Random(seed).shuffle(order)
    return {
        "blurred": blurred(order, rows=VISIT, batch=BATCH, seed=seed),
        "returning": returning(order, rows=VISIT, batch=BATCH, seed=seed),
    }


def verdicts(
    skills: Sequence[SkillRows],
    stored: Mapping[str, Float[Tensor, "n d"]],
    own: Float[Tensor, "m d"],
    variants: Sequence[Variant],
    seeds: int,
    gradient: Mapping[str, Float[Tensor, " d"]] | None = None,
) -> dict[str, list[Judged]]:
    """What every variant says of every arrival of every stream.

    Args:
        skills: rows that streams are made of.
        stored: tap features of those rows, by skill and in their order.
        own: of the base's own prompts.
        variants: what is compared.
        seeds: of streams.
        gradient: of the rows of the first seed's streams, by their keys.
    """
    tap = {
        row.key: rows
        for skill in skills
        for row, rows in zip(skill.train, stored[skill.name], strict=True)
    }
    found: dict[str, list[Judged]] = {one.name: [] for one in variants}
    for seed in range(seeds):
        for kind, stream in streams(skills, seed).items():
            for test in dict.fromkeys(one.test for one in variants):
                of_gradients = test.startswith("gradient")
                if of_gradients and (gradient is None or seed):
                    continue
                rows = gradient if of_gradients and gradient is not None else tap
                arrivals = arrivals_of(stream, rows)
                seen = measured(test, arrivals, own, seed)
                for variant in variants:
                    if variant.test == test:
                        found[variant.name] += judged(variant, arrivals, seen, kind, seed)
                seconds = sum(one.seconds for one in seen)
                print(f"seed {seed}  {kind}  {test}: {seconds:.1f} s", flush=True)
    return found


def figures(found: Sequence[Judged], usual: Sequence[Judged] | None) -> dict[str, Any]:
    """What a variant's verdicts come to; nothing where it has none.

    Args:
        found: its verdicts.
        usual: the default's on the same arrivals; None for the default itself.
    """
    new, known = ([one for one in found if one.new is side] for side in (True, False))
    if usual is not None:
        here = {one.place for one in found}
        usual = [one for one in usual if one.place in here]
    over = None
    if usual is not None:
        interval = apart(found, usual)
        over = [interval.value, interval.low, interval.high]
    kinds = ("hard", "blurred", "returning")
    return {
        "wrong": _share([one.wrong for one in found]),
        "unsure": _share([one.said is None for one in found]),
        "missed": sum(one.said is False for one in new),
        "new": len(new),
        "again": sum(one.said is True for one in known),
        "known": len(known),
        "streams": {k: _share([o.wrong for o in found if o.of(k)]) for k in kinds},
        "auroc": auroc([one.value for one in new], [one.value for one in known]),
        "seconds": _share([one.seconds for one in found]),
        **({} if over is None else {"over": over}),
    }


def apart(found: Sequence[Judged], usual: Sequence[Judged]) -> Interval:
    """The share of wrong verdicts less that of the default's on the same arrivals, with its
    interval over the skills of each seed: a seed's streams hold the same rows, so arrivals of one
    skill in them are no further ones."""
    groups: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for one, other in zip(found, usual, strict=True):
        groups.setdefault((one.place[0], one.skill), []).append((one.wrong, other.wrong))
    first, second = (
        [statistics.fmean(pair[side] for pair in own) for own in groups.values()] for side in (0, 1)
    )
    return paired_bootstrap(first, second, weights=[len(own) for own in groups.values()])


def compared(found: Mapping[str, Sequence[Judged]], variants: Sequence[Variant]) -> dict[str, Any]:
    """Every variant that has verdicts, the first beside each."""
    usual = variants[0].name
    return {
        one.name: {
            "group": one.group,
            "seeds": len({place.place[0] for place in found[one.name]}),
            **figures(found[one.name], None if one.name == usual else found[usual]),
        }
        for one in variants
        if found[one.name]
    }


def _share(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def document(found: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """The result file."""
    taken = " --gradients gradients.pt" if arguments.gradients else ""
    return {
        "benchmark": "novelty_choices",
        "title": "Choices about novelty, one at a time",
        "compared": f"verdicts on blurred and returning streams of six skills, {VISIT} rows a "
        f"visit in batches of {BATCH}, {arguments.seeds} seeds (gradients: the first alone, and "
        "held against the default there), intervals over the skills of each seed; a test's own "
        "interval that straddles its threshold is unsure, "
        "which is not wrong; the hard stream is the returning one until a skill returns; times "
        "are of a machine that others used",
        "command": "python benchmarks/novelty_choices.py --data path/to/skills --features "
        f"features.pt{taken} --rows {arguments.rows} --seeds {arguments.seeds}",
        "date": time.strftime("%Y-%m-%d"),
        "device": "cpu",
        "machine": machine("cpu"),
        "versions": versions(),
        "rows": [asdict(row) for row in novelty_rows(found)],
        "choices": found,
    }


def taken(path: Path, skills: Sequence[SkillRows]) -> dict[str, Tensor]:
    """The gradients of the file, or those of the first seed's streams, kept there."""
    rows = {
        row.key: row
        for one in streams(skills, 0).values()
        for batch in one.batches
        for row in batch
    }
    if path.exists():
        there: dict[str, Tensor] = torch.load(path, weights_only=True)
        if there.keys() != rows.keys():
            raise SystemExit(
                f"{path} has gradients of {len(there)} rows, and not of the {len(rows)} of these "
                "streams; name another --gradients file, or remove this one"
            )
        return there
    found = dict(zip(rows, gradients(DEFAULT_BASE, tuple(rows.values())), strict=True))
    torch.save(found, path)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--gradients", type=Path, default=None, help="file that keeps them")
    arguments = parser.parse_args(argv)
    stored = features(arguments)
    # Streams are drawn from all rows that there are features of.
    count = min(len(one["mean"]) for one in stored.train.values())
    found = rows_of(arguments.data, count, arguments.test, SKILLS)
    skills = [replace(skill, test=(), out_of_scope=()) for skill in found]
    gradient = None if arguments.gradients is None else taken(arguments.gradients, skills)
    said = verdicts(
        skills, {name: one["mean"] for name, one in stored.train.items()}, stored.own["mean"],
        VARIANTS, arguments.seeds, gradient,
    )  # fmt: skip
    table = compared(said, VARIANTS)
    for name, one in table.items():
        print(f"{name}: wrong {one['wrong']:.1%}, unsure {one['unsure']:.1%}")
    if arguments.out is not None:
        text = json.dumps(document(table, arguments), indent=1, ensure_ascii=False)
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
