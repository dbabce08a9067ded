"""Which score tells single inputs of skills that were never learned from those of skills that were.

    python benchmarks/screening.py --data path/to/skills

`--data` is a folder with `<skill>/{train,test}.jsonl`, perhaps with `<skill>/out_of_scope.jsonl`.
Each skill is left out in its turn; then the six of the bench are learned, and the others are
foreign. Candidates are computed from tap features of stored rows alone. `no expert` is the closed
form's own log-odds; Mahalanobis as of Lee et al. (2018), relative as of Ren et al. (2021);
neighbours as of Sun et al. (2022); the residual outside the skills' means is that of ViM (Wang et
al. 2022). With `--out benchmarks/results/screening.json` ours is on the scoreboard. Takes minutes:
only the blocks below the tap run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from machine import machine, versions
from measured import Row
from router_features import SKILLS, features
from torch import Tensor
from torch.nn.functional import normalize

from dylora_moe.build.making import OWN_PROMPTS
from dylora_moe.evaluation.continual.unseen import unseen_auroc
from dylora_moe.foundation.base import load_base
from dylora_moe.foundation.own_prompts import write_own_prompts
from dylora_moe.foundation.statistics import FeatureStatistics, SharedScatter, stack_means
from dylora_moe.routing.closed_form import WhitenedClasses
from dylora_moe.scoring.detection import auroc
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.screening import screen_of
from dylora_moe.text.prompts import read_prompts
from dylora_moe.text.reading import read_examples

OURS = "cosine from the base's own prompts"
ROWS = (256, 64)
SHARES = (0.02, 0.05, 0.1)


@dataclass(frozen=True)
class Data:
    """Tap features of prompts, by skill; of prompts beside a skill, too."""

    train: Mapping[str, Tensor]
    test: Mapping[str, Tensor]
    beside: Mapping[str, Tensor]
    own: Tensor


def read(folder: Path, test: int) -> Data:
    """Runs the base below its tap over everything."""
    base = load_base()
    names = sorted(path.parent.name for path in folder.glob("*/train.jsonl"))
    prompts = write_own_prompts(base, OWN_PROMPTS)

    def prompted(name: str, split: str, rows: int) -> Tensor:
        examples = read_examples(folder / name / f"{split}.jsonl", rows)
        return features(base, [example.turns[:-1] for example in examples])

    strangers = {path.parent.name: path for path in folder.glob("*/out_of_scope.jsonl")}
    return Data(
        {name: prompted(name, "train", max(ROWS)) for name in names},
        {name: prompted(name, "test", test) for name in names},
        {name: features(base, read_prompts(path)) for name, path in strangers.items()},
        features(base, prompts),
    )


def candidates(train: Mapping[str, Tensor], own: Tensor) -> Callable[[Tensor], dict[str, Tensor]]:
    """Every score, fitted; the higher, the stranger."""
    parts = [own, *train.values()]
    fitted = [FeatureStatistics.from_features(part) for part in parts]
    shared = SharedScatter.of(fitted, own.shape[1])
    space = WhitenedClasses.of(stack_means(fitted), shared, dtype=torch.float32)
    everything = FeatureStatistics.from_features(torch.cat(parts))
    alone = SharedScatter.of([everything], own.shape[1])
    whole = WhitenedClasses.of(everything.mean[None], alone, dtype=torch.float32)
    stored = [space.whiten(part) for part in parts]
    origin, skills = space.means[0], space.means[1:]
    outside = torch.linalg.qr(skills.T)[0]

    def nearest(points: Tensor, rows: Sequence[Tensor]) -> Tensor:
        near = [(normalize(points, dim=-1) @ normalize(r, dim=-1).T).topk(5, 1) for r in rows]
        return torch.stack([one.values.mean(1) for one in near], 1)

    def score(given: Tensor) -> dict[str, Tensor]:
        points = space.whiten(given)
        length = points.square().sum(1)
        logits = points @ space.means.T - space.means.square().sum(1) / 2
        distance = (length - 2 * logits[:, 1:].amax(1)).clamp_min(0)
        own_cosine = normalize(points - origin, dim=-1) @ normalize(skills - origin, dim=-1).T
        away = nearest(points - origin, [rows - origin for rows in stored[1:]])
        middle = normalize(points, dim=-1) @ normalize(skills, dim=-1).T
        near = nearest(points, stored)
        return {
            OURS: -own_cosine.amax(1),
            "the same, and 5 neighbours": -(own_cosine + away).amax(1),
            "5 neighbours, cosine from the own prompts": -away.amax(1),
            "5 neighbours, cosine from the middle": -near[:, 1:].amax(1),
            "the same, less the own prompts": near[:, 0] - near[:, 1:].amax(1),
            "cosine from the middle of all classes": -middle.amax(1),
            "no expert, log-odds": logits[:, 0] - logits[:, 1:].logsumexp(1),
            "no expert, log-odds / length": (logits[:, 0] - logits[:, 1:].logsumexp(1))
            / length.sqrt(),
            "largest logit": -logits[:, 1:].amax(1),
            "energy": -logits[:, 1:].logsumexp(1),
            "Mahalanobis": distance,
            "Mahalanobis / squared length": distance / length,
            "Mahalanobis, relative": distance - whole.whiten(given).square().sum(1),
            "residual outside the means": 1 - (points @ outside).square().sum(1) / length,
        }

    return score


def compare(data: Data, rows: int) -> dict[str, dict[str, float]]:
    """AUROC of every candidate on every task: `all but X`, foreign skills, beside a skill."""
    train = {name: part[:rows] for name, part in data.train.items()}
    found: dict[str, dict[str, float]] = {}
    for left in train:
        kept = {name: part for name, part in train.items() if name != left}
        score = candidates(kept, data.own)
        known, foreign = score(torch.cat([data.test[n] for n in kept])), score(data.test[left])
        for name in known:
            found.setdefault(name, {})[f"left out: {left}"] = _auroc(foreign[name], known[name])
    six = {name: train[name] for name in SKILLS if name in train}
    score = candidates(six, data.own)
    known = score(torch.cat([data.test[name] for name in six]))
    tasks = {f"six learned: {n}": (data.test[n], known) for n in train if n not in six}
    for name, part in data.beside.items():
        if name in six:
            tasks[f"beside {name}"] = (part, score(data.test[name]))
    for task, (part, against) in tasks.items():
        for name, values in score(part).items():
            found[name][task] = _auroc(values, against[name])
    return found


def caught(data: Data, rows: int) -> list[dict[str, Any]]:
    """What our line catches: of each skill left out, and of the others' own test prompts."""
    background, found = FeatureStatistics.from_features(data.own), []
    for share in SHARES:
        strangers, own = {}, []
        for left in data.train:
            library = SkillLibrary()
            for name, part in data.train.items():
                if name != left:
                    library.add_skill(name, part[:rows], name)
            screen = screen_of(library, background, share=share)
            strangers[left] = float(screen(data.test[left]).strange.float().mean())
            tests = torch.cat([data.test[name] for name in data.train if name != left])
            own.append(float(screen(tests).strange.float().mean()))
        found.append({"rows": rows, "share": share, "strangers": strangers, "own": own})
    return found


def _auroc(positives: Tensor, negatives: Tensor) -> float:
    return auroc(positives.tolist(), negatives.tolist())


def _mean(tasks: Mapping[str, float], begins: str) -> float:
    return statistics.fmean(v for task, v in tasks.items() if task.startswith(begins))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--test", type=int, default=100, help="test prompts of each skill")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    data = read(arguments.data, arguments.test)
    tables = {rows: compare(data, rows) for rows in ROWS}
    for rows, table in tables.items():
        for name, tasks in table.items():
            print(f"{rows:4} rows  {_mean(tasks, 'left out'):.4f}  {name}: ", end="")
            print(", ".join(f"{task} {value:.3f}" for task, value in tasks.items()), flush=True)
    lines = [one for rows in ROWS for one in caught(data, rows)]
    print(json.dumps(lines, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(document(data, tables, lines) + "\n", encoding="utf-8")


def document(data: Data, tables: Mapping[int, Any], lines: Sequence[Any]) -> str:
    """The result file."""
    rows = []
    for count in ROWS:
        found = unseen_auroc(
            {name: part[:count] for name, part in data.train.items()},
            data.test,
            data.own,
            out_of_scope=data.beside,
        )
        goals = [(found.unseen, "of unseen skills", 0.95, 0.99)]
        goals += [(i, f"beside {n}", None, 0.85) for n, i in found.out_of_scope.items()]
        for interval, what, must, aim in goals:
            measure = f"AUROC of the screen for single inputs {what}, {count} rows a skill"
            ends = interval.low, interval.high
            rows.append(Row(measure, interval.value, "at least", must, aim, *ends, interval=True))
    body = {
        "benchmark": "screening",
        "title": "Single inputs of skills that were never learned",
        "compared": "each of the skills left out in its turn: its test prompts against those of "
        "the others, by the score of a screen that knows the others alone; prompts beside a skill "
        "against that skill's own",
        "command": "python benchmarks/screening.py --data path/to/skills",
        "date": time.strftime("%Y-%m-%d"),
        "device": "cpu",
        "machine": machine("cpu"),
        "versions": versions(),
        "rows": [asdict(row) for row in rows],
        "candidates": {str(count): table for count, table in tables.items()},
        "caught": list(lines),
    }
    return json.dumps(body, indent=1, ensure_ascii=False)


if __name__ == "__main__":
    main()
