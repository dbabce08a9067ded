"""Learns eight arrivals of six real skills and measures the router on rows it never saw.

    python benchmarks/real_skills.py --data path/to/skills --pool /tmp/real-pool

`--data` is a folder with `<skill>/{train,test}.jsonl`. The pool is made and learned if it is not
there yet (an interrupted one is gone on with), then every test row of every skill is scored under
the router's own choice and under the right expert pinned at weight one, and prompts of two skills
that were never learned are routed. Results: `--out` (JSON) and a table; with `--out
benchmarks/results/real_skills.json` its rows are on the scoreboard.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from machine import machine, versions
from measured import Row

from dylora_moe.build.pool import Pool
from dylora_moe.config import LearnSettings, learn_settings
from dylora_moe.experts.gates import Gates
from dylora_moe.lifecycle.answering import route
from dylora_moe.records import BASE_NAME
from dylora_moe.scoring.bootstrap import Paired, mean_ratio, paired_bootstrap
from dylora_moe.text.reading import read_examples
from dylora_moe.text.stream import ArrivalSource, read_arrivals
from dylora_moe.training.measure import answer_losses

ORDER = ("snips", "cmudict", "wikisql", "scan", "snips", "clinc150", "nl2bash", "cmudict")
FOREIGN = ("mbpp", "gsm8k")


class Told:
    """Prints what the learner says, with the time."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def stage(self, name: str, detail: str = "") -> None:
        print(f"{time.perf_counter() - self._start:7.1f} s  {name} {detail}", flush=True)

    def progress(self, done: int, total: int, values: Any) -> None:
        return None

    def verdict(self, arrival: str, verdict: Any) -> None:
        print(f"           {arrival}: {verdict.name} ({verdict.reason})", flush=True)

    def result(self, result: Any) -> None:
        print(f"           {result.action}: {result.message} ({result.seconds:.0f} s)", flush=True)

    def warning(self, message: str) -> None:
        print(f"           warning: {message}", flush=True)


def learn(pool: Pool, data: Path, rows: int, settings: LearnSettings) -> list[dict[str, Any]]:
    """Learns the stream; a skill that returns brings rows it has not shown before."""
    seen: Counter[str] = Counter()
    sources = []
    for skill in ORDER:
        path = data / skill / "train.jsonl"
        sources.append(ArrivalSource(path, skip=seen[skill] * rows, max_examples=rows))
        seen[skill] += 1
    results = pool.learn_arrivals(read_arrivals(sources), settings=settings, watch=Told())
    return [
        {
            "arrival": r.arrival,
            "verdict": r.verdict.name,
            "separability": r.verdict.separability and r.verdict.separability.value,
            "fit": r.verdict.fit and r.verdict.fit.value,
            "action": r.action,
            "expert": r.expert,
            "seconds": r.seconds,
        }
        for r in results
    ]


def measure(pool: Pool, data: Path, limit: int | None) -> dict[str, Any]:
    """Routed and pinned losses of every test row, and where the rows went."""
    live, pairs, away = pool.live, {}, []
    skills: dict[str, dict[str, Any]] = {}
    for skill in dict.fromkeys(ORDER):
        right = pool.revision.expert(skill)
        if right is None:
            continue
        examples = read_examples(data / skill / "test.jsonl", limit)
        rows = live.encode(examples)
        with torch.no_grad():
            routing = live.router(rows.features.to(live.base.device))
        routed = answer_losses(live.model, rows, gates=routing)
        pinned = answer_losses(live.model, rows, expert=right.expert_id)
        best = routing.probabilities.argmax(-1)
        one = torch.nn.functional.one_hot(best, len(routing.experts)).float()
        hard = answer_losses(
            live.model,
            rows,
            gates=Gates(routing.experts, one * ~routing.to_none[:, None]),
        )
        pairs[skill] = Paired(
            routed.per_row.tolist(), pinned.per_row.tolist(), routed.tokens.tolist()
        )
        column = routing.experts.index(right.expert_id)
        went: Counter[str] = Counter()
        for index, weights in enumerate(routing.weights.tolist()):
            best = max(range(len(weights)), key=weights.__getitem__)
            to = BASE_NAME if sum(weights) == 0 else live.alias(routing.experts[best])
            went[to] += 1
            if to != skill:
                away.append(
                    {
                        "skill": skill,
                        "to": to,
                        "prompt": examples[index].prompt,
                        "weight_of_right": round(weights[column], 3),
                        "routed": round(float(routed.per_row[index]), 3),
                        "pinned": round(float(pinned.per_row[index]), 3),
                    }
                )
        interval = paired_bootstrap(
            pairs[skill].first, pairs[skill].second, weights=pairs[skill].weights, statistic="ratio"
        )
        skills[skill] = {
            "rows": len(rows),
            "routed": routed.mean,
            "pinned": pinned.mean,
            "hard_ratio": hard.mean / pinned.mean,
            "ratio": interval.value,
            "ratio_low": interval.low,
            "ratio_high": interval.high,
            "to": dict(went.most_common()),
            "to_none": went[BASE_NAME] / len(rows),
        }
        print(skill, json.dumps(skills[skill]), flush=True)
    mean = mean_ratio(list(pairs.values()))
    own = sum(s["rows"] * s["to_none"] for s in skills.values())
    foreign = {}
    for name in FOREIGN:
        prompts = [e.turns[:-1] for e in read_examples(data / name / "test.jsonl", limit)]
        foreign[name] = float(route(live, prompts).to_none.float().mean())
    return {
        "experts": [e.alias for e in pool.experts()],
        "skills": skills,
        "mean_hard_ratio": sum(s["hard_ratio"] for s in skills.values()) / len(skills),
        "mean_ratio": mean.value,
        "mean_ratio_low": mean.low,
        "mean_ratio_high": mean.high,
        "worst_ratio": max(s["ratio"] for s in skills.values()),
        "own_to_none": own / sum(s["rows"] for s in skills.values()),
        "foreign_to_none": foreign,
        "went_elsewhere": away,
    }


def rows(found: Mapping[str, Any]) -> list[Row]:
    """The figures with their goals; the spans are 95% intervals by bootstrap over test rows."""
    low, high = found["mean_ratio_low"], found["mean_ratio_high"]
    worst = max(found["skills"].values(), key=lambda skill: skill["ratio"])
    loss, off = "answer loss, router's choice / right expert", abs(len(found["experts"]) - 6)
    return [
        Row("experts grown, off from six true skills", off, must=0, aim=0),
        Row(f"{loss}, mean over skills", found["mean_ratio"], "at most", 1.08, 1.03, low, high),
        Row(f"{loss}, worst skill", worst["ratio"], "at most", 1.35, 1.15, worst["ratio_low"],
            worst["ratio_high"]),
        Row("share of the skills' own prompts to no expert", found["own_to_none"], must=0.01),
        *(
            Row(f"share of {name} prompts, never learned, to no expert", share, "at least", 0.95)
            for name, share in found["foreign_to_none"].items()
        ),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=256, help="examples of each arrival")
    parser.add_argument("--limit", type=int, default=None, help="test rows of each skill")
    parser.add_argument("--set", action="append", default=[], help="settings, as for dylora learn")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    made = arguments.pool.exists()
    pool = Pool.open(arguments.pool) if made else Pool.create(arguments.pool, progress=Told())
    with pool:
        learned = learn(pool, arguments.data, arguments.rows, learn_settings(arguments.set))
        found = {"arrivals": learned, **measure(pool, arguments.data, arguments.limit)}
        device = pool.live.base.device.type
    about = {
        "benchmark": "real_skills",
        "title": "Eight arrivals of six real skills, and the router on rows it never saw",
        "compared": "every test row under the router's own choice, and under the right expert "
        "pinned at weight one; token-mean losses of the answers",
        "command": "python benchmarks/real_skills.py --data path/to/skills --pool real-pool",
        "date": time.strftime("%Y-%m-%d"),
        "device": device,
        "machine": machine(device),
        "versions": versions(),
        "rows": [asdict(one) for one in rows(found)],
    }
    if arguments.out is not None:
        text = json.dumps(about | found, indent=1, ensure_ascii=False)
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in found.items() if k != "went_elsewhere"}, indent=1))
    for row in found["went_elsewhere"]:
        print(f"{row['skill']} -> {row['to']}: {row['prompt'][:100]!r}")


if __name__ == "__main__":
    main()
