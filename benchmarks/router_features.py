"""Which features, and which gate on them, tell real skills apart and foreign input from both.

    python benchmarks/router_features.py --data path/to/skills

For the base's tap features (means over the prompt of one block or of four), at several shrinkages:
accuracy of the closed form on rows it never saw, and, with the threshold calibrated on the stored
rows, the share of the skills' own rows and of two foreign skills' prompts that go to no expert;
then the same with the learned correction. Takes minutes: only the blocks below the tap run.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dylora_moe.foundation.base import Base, load_base
from dylora_moe.foundation.own_prompts import write_own_prompts
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.routing.correction import GateKind
from dylora_moe.routing.fit import fit_correction
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.text.reading import read_examples
from dylora_moe.text.template import Encoded, encode_prompt

SKILLS = ("snips", "cmudict", "wikisql", "scan", "clinc150", "nl2bash")
FOREIGN = ("mbpp", "gsm8k")


def features(base: Base, prompts: Sequence[Any]) -> Tensor:
    """Tap features of prompts (texts or turns) in the plain format."""
    rows = []
    for prompt in prompts:
        ids = tuple(encode_prompt(prompt, base.tokenizer))
        rows.append(Encoded(ids, (False,) * len(ids), len(ids), ""))
    return TrunkCache(base, rows).features


def pieces(base: Base, texts: Sequence[str], seed: int = 0) -> list[str]:
    """The texts cut to a random length each: more like prompts, and a worse *no expert*."""
    draw = random.Random(seed)
    cut = []
    for text in texts:
        tokens = base.tokenizer(text, add_special_tokens=False)["input_ids"]
        cut.append(base.tokenizer.decode(tokens[: draw.choice((4, 6, 8, 12, 16, 24, 32, 48))]))
    return [text for text in cut if text.strip()]


def read(base: Base, data: Path, skill: str, split: str, rows: int | None) -> Tensor:
    examples = read_examples(data / skill / f"{split}.jsonl", rows)
    return features(base, [example.turns[:-1] for example in examples])


def judge(
    train: Mapping[str, Tensor],
    test: Mapping[str, Tensor],
    own: Tensor,
    *,
    shrinkage: float,
    gate: GateKind,
    steps: int,
) -> dict[str, Any]:
    """Fits a router on the training rows and reads it on the test rows."""
    router = DynamicHybridRouter(own.shape[1], shrinkage=shrinkage, gate=gate)
    router.set_none(FeatureStatistics.from_features(own))
    for skill, rows in train.items():
        router.add_expert(skill, f"expert_{skill}", FeatureStatistics.from_features(rows))
    report = fit_correction(router, train, own, steps=steps)
    with torch.no_grad():
        found = {name: router(rows) for name, rows in test.items()}
    accuracy = {
        skill: float((found[skill].logits[:, 1:].argmax(-1) == index).float().mean())
        for index, skill in enumerate(train)
    }
    own_rows = torch.cat([found[skill].to_none for skill in train]).float()
    return {
        "shrinkage": shrinkage,
        "gate": gate,
        "steps": steps,
        "best_step": report.best_step,
        "temperature": report.temperature,
        "accuracy": accuracy,
        "mean_accuracy": sum(accuracy.values()) / len(accuracy),
        "own_to_none": float(own_rows.mean()),
        **{f"{name}_to_none": float(found[name].to_none.float().mean()) for name in FOREIGN},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=218, help="training rows a skill")
    parser.add_argument("--own", type=int, default=512, help="prompts the base writes by itself")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    base = load_base()
    texts = write_own_prompts(base, arguments.own)
    own = {
        "whole": features(base, texts),
        "pieces": features(base, pieces(base, texts)),
    }
    train = {s: read(base, arguments.data, s, "train", arguments.rows) for s in SKILLS}
    test = {s: read(base, arguments.data, s, "test", None) for s in (*SKILLS, *FOREIGN)}
    width, blocks = base.anatomy.d_model, base.anatomy.feature_blocks
    results = []
    for name, columns in (
        (f"block {blocks[-1]}", slice(-width, None)),
        (f"blocks {', '.join(map(str, blocks))}", slice(None)),
    ):
        for cut, shrinkage, gate, steps in (
            ("whole", 0.1, "linear", 0), ("whole", 0.3, "linear", 0), ("whole", 0.5, "linear", 0),
            ("pieces", 0.1, "linear", 0), ("whole", 0.1, "linear", 150), ("whole", 0.1, "mlp", 150),
        ):  # fmt: skip
            found = judge(
                {s: rows[:, columns] for s, rows in train.items()},
                {s: rows[:, columns] for s, rows in test.items()},
                own[cut][:, columns],
                shrinkage=shrinkage,
                gate="mlp" if gate == "mlp" else "linear",
                steps=steps,
            )
            results.append({"features": name, "own_prompts": cut, **found})
            print(json.dumps(results[-1]), flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
