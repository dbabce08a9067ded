"""Unlabelled mixed rows of real skills: are their kinds found, and do later rows go to their own?

    python benchmarks/traffic.py --data path/to/skills

`--data` is a folder with `<skill>/train.jsonl`. First rows of many sets of skills are clustered as
they come to an empty pool, by whole rows and by prompts alone, and by HDBSCAN beside ours. Then
mixed traffic of six skills (and of all) comes in chunks: each is sorted as a pool sorts it, every
kind gets the verdict of the novelty test, and what is learned is features alone: no expert is
trained. With `--out benchmarks/results/traffic.json` its rows are on the scoreboard. Takes minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from machine import machine, versions
from measured import Row
from router_features import SKILLS, features
from torch import Tensor

from dylora_moe.build.making import OWN_PROMPTS
from dylora_moe.foundation.base import Base, load_base
from dylora_moe.foundation.own_prompts import write_own_prompts
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.lifecycle.recipe import TrafficRules
from dylora_moe.lifecycle.traffic import Enough, RowFeatures, features_of, sorted_by
from dylora_moe.records import Example
from dylora_moe.skills.classifier import ClassifierTwoSample
from dylora_moe.skills.clustering import clusters
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.screening import screen_of
from dylora_moe.text.reading import read_examples
from dylora_moe.text.template import encode_all

EACH, CHUNK = 128, 128
SIZES = (32, 64, 128)
SETS = (1, 2, 3, 6, 8)


@dataclass(frozen=True)
class Rows:
    """A skill's rows with their features."""

    examples: tuple[Example, ...]
    seen: RowFeatures


def read(base: Base, folder: Path) -> dict[str, Rows]:
    """The first rows of each skill."""
    found = {}
    for path in sorted(folder.glob("*/train.jsonl")):
        examples = read_examples(path, EACH)
        encoded, _ = encode_all(examples, base.tokenizer)
        found[path.parent.name] = Rows(tuple(examples), features_of(base, encoded))
    return found


def clustered(skills: Mapping[str, Rows], own: FeatureStatistics) -> list[dict[str, Any]]:
    """Sets of skills of many sizes, each clustered in several ways."""
    draw, table = random.Random(0), []
    for size, count in itertools.product(SIZES, SETS):
        sets = list(itertools.combinations(skills, min(count, len(skills))))
        draw.shuffle(sets)
        ways: dict[str, list[dict[str, float]]] = {}
        for chosen in sets[:8]:
            truth = [name for name in chosen for _ in range(size)]
            whole = torch.cat([skills[name].seen.whole[:size] for name in chosen])
            prompts = torch.cat([skills[name].seen.prompts[:size] for name in chosen])
            labels = {
                "average linkage, whole rows": clusters(whole, own).tolist(),
                "average linkage, prompts": clusters(prompts, own).tolist(),
                "HDBSCAN of 8 components, whole rows": _hdbscan(whole, own),
                "HDBSCAN of 8 components, prompts": _hdbscan(prompts, own),
            }
            for way, found in labels.items():
                ways.setdefault(way, []).append(judged(found, truth, size // 2))
        for way, each in ways.items():
            means = {key: statistics.fmean(one[key] for one in each) for key in each[0]}
            table.append({"way": way, "rows": size, "skills": count, "sets": len(each), **means})
    return table


def judged(labels: Sequence[int], truth: Sequence[str], least: int) -> dict[str, float]:
    """Of the clusters with `least` rows: their number against the truth, purity, rows in them."""
    kinds: dict[int, Counter[str]] = {}
    for label, name in zip(labels, truth, strict=True):
        if label >= 0:
            kinds.setdefault(label, Counter())[name] += 1
    large = [kind for kind in kinds.values() if kind.total() >= least]
    inside = sum(kind.total() for kind in large)
    return {
        "exact": float(len(large) == len(set(truth))),
        "purity": sum(max(kind.values()) for kind in large) / max(1, inside),
        "covered": inside / len(truth),
    }


def _hdbscan(rows: Tensor, own: FeatureStatistics) -> list[int]:
    from sklearn.cluster import HDBSCAN
    from sklearn.decomposition import PCA

    spread = (own.deviations / (own.count - 1)).sqrt()
    points = torch.nn.functional.normalize((rows.double() - own.mean) / spread, dim=-1).numpy()
    found = HDBSCAN(min_cluster_size=16, min_samples=3, copy=True)
    labels: list[int] = found.fit_predict(PCA(8, random_state=0).fit_transform(points)).tolist()
    return labels


def stream(
    skills: Mapping[str, Rows], own: FeatureStatistics, rules: TrafficRules, seed: int
) -> dict[str, Any]:
    """Mixed traffic in chunks into a pool that learns features alone."""
    rows = [(n, example) for n, part in skills.items() for example in part.examples]
    random.Random(seed).shuffle(rows)
    owner = {example.key: name for name, example in rows}
    place = {
        example.key: (part, index)
        for part in skills.values()
        for index, example in enumerate(part.examples)
    }

    def seen(examples: Sequence[Example]) -> RowFeatures:
        at = [place[example.key] for example in examples]
        return RowFeatures(
            torch.stack([part.seen.prompts[index] for part, index in at]),
            torch.stack([part.seen.whole[index] for part, index in at]),
        )

    library, test = SkillLibrary(), ClassifierTwoSample()
    names: dict[str, str] = {}
    told: Counter[str] = Counter()
    grown: list[Counter[str]] = []
    waiting: tuple[Example, ...] = ()
    for start in range(0, len(rows), CHUNK):
        given = [*waiting, *(example for _, example in rows[start : start + CHUNK])]
        screen = screen_of(library, own, share=rules.share)
        found = sorted_by(screen, own, given, seen(given), rules, Enough(32, 32))
        waiting = found.waiting
        told["overruled"] += found.overruled
        for part in [*(part for _, part in found.claimed), *found.clusters]:
            kind, prompts = Counter(owner[one.key] for one in part), seen(part).prompts
            measured = test.measure(prompts, library)
            apart = measured.separability
            if apart is None or apart.value > test.threshold:
                skill = f"skill_{len(names)}"
                names[skill] = kind.most_common(1)[0][0]
                library.add_skill(skill, prompts, skill)
                grown.append(kind)
            else:
                skill = measured.nearest[0][0]
                library.extend(skill, prompts)
            right = kind[names[skill]]
            told["right"] += right
            told["wrong"] += kind.total() - right
    inside = sum(kind.total() for kind in grown)
    return {
        "skills": len(skills),
        "seed": seed,
        "rules": asdict(rules),
        "experts": len(grown),
        "of skills": len(set(names.values())),
        "purity": sum(max(kind.values()) for kind in grown) / max(1, inside),
        "to the right skill": told["right"] / len(rows),
        "to a wrong one": told["wrong"] / len(rows),
        "waiting": len(waiting) / len(rows),
        "overruled by the vote": told["overruled"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    base = load_base()
    skills = read(base, arguments.data)
    own = FeatureStatistics.from_features(features(base, write_own_prompts(base, OWN_PROMPTS)))
    table = clustered(skills, own)
    for line in table:
        print(json.dumps(line), flush=True)
    six = {name: rows for name, rows in skills.items() if name in SKILLS}
    runs = [
        stream(part, own, TrafficRules(share=share, least=least), seed)
        for part in (six, skills)
        for least in (32, 64)
        for share in (0.02, 0.05, 0.1)
        for seed in range(3)
    ]
    for run in runs:
        print(json.dumps(run), flush=True)
    if arguments.out is not None:
        body = document(table, runs)
        arguments.out.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def document(table: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> Any:
    """The result file; its rows are of the defaults."""
    usual = [one for one in runs if one["rules"] == asdict(TrafficRules())]
    rows = []
    for count in sorted({one["skills"] for one in usual}):
        some = [one for one in usual if one["skills"] == count]
        what = f"mixed traffic of {count} skills, {EACH} rows each, in chunks of {CHUNK}"
        rows += [
            _row(f"experts grown, off from the true skills, {what}",
                 [float(abs(one["experts"] - count)) for one in some], "at most", 1, 0),
            _row(f"purity of the clusters that became experts, {what}",
                 [one["purity"] for one in some], "at least", None, None),
            _row(f"share of the rows that went to the wrong skill, {what}",
                 [one["to a wrong one"] for one in some], "at most", None, None),
        ]  # fmt: skip
    return {
        "benchmark": "traffic",
        "title": "Unlabelled mixed traffic, sorted",
        "compared": "rows of real skills without names, sorted as a pool sorts them; every kind "
        "gets the verdict of the novelty test on features alone, without training an expert; "
        "median and range over three orders of the rows",
        "command": "python benchmarks/traffic.py --data path/to/skills",
        "date": time.strftime("%Y-%m-%d"),
        "device": "cpu",
        "machine": machine("cpu"),
        "versions": versions(),
        "rows": [asdict(row) for row in rows],
        "clusters": list(table),
        "streams": list(runs),
    }


def _row(
    measure: str, values: Sequence[float], direction: Any, must: float | None, aim: float | None
) -> Row:
    middle = statistics.median(values)
    return Row(measure, middle, direction, must, aim, min(values), max(values))


if __name__ == "__main__":
    main()
