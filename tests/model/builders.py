"""A tiny DyLoRAMoE with random experts and a gate fitted on random features, and batches for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dylora_moe.experts.manager import ExpertManager
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.routing.router import DynamicHybridRouter
from tests.experts.builders import scramble
from tests.models import tiny_base


def model_of(
    family: str = "llama", experts: int = 2, *, random: bool = True, **options: Any
) -> DyLoRAMoE:
    """Experts are young, so that the gate mixes all of them, and no input goes to none."""
    base = tiny_base(family, **options)
    manager = ExpertManager(base.model, base.anatomy, base_name=base.name)
    router = DynamicHybridRouter(base.anatomy.d_features, temperature=10.0, none_threshold=1e9)
    generator = torch.Generator().manual_seed(0)
    own_prompts = torch.randn(64, router.d_features, generator=generator)
    router.set_none(FeatureStatistics.from_features(own_prompts))
    for i in range(experts):
        name = f"expert_{i}"
        manager.create_expert(name, rank=4, alpha=8.0)
        if random:
            scramble(manager, name, seed=i)
        features = torch.randn(64, router.d_features, generator=generator)
        shift = torch.randn(router.d_features, generator=generator) * 0.02
        router.add_expert(f"skill_{i}", name, FeatureStatistics.from_features(features + shift))
    return DyLoRAMoE(base, router, manager)


LENGTHS = (11, 7, 14)


def padded(lengths: tuple[int, ...] = LENGTHS, *, left: bool = False) -> dict[str, Tensor]:
    """Rows of random tokens; the first half of each is the prompt, the rest is trained."""
    width = max(lengths)
    batch = {
        "input_ids": torch.zeros(len(lengths), width, dtype=torch.long),
        "attention_mask": torch.zeros(len(lengths), width, dtype=torch.long),
        "labels": torch.full((len(lengths), width), -100),
        "prompt_mask": torch.zeros(len(lengths), width, dtype=torch.bool),
    }
    for i, length in enumerate(lengths):
        start = width - length if left else 0
        tokens = torch.randint(5, 100, (length,), generator=torch.Generator().manual_seed(i))
        half = start + length // 2
        batch["input_ids"][i, start : start + length] = tokens
        batch["attention_mask"][i, start : start + length] = 1
        batch["labels"][i, half : start + length] = tokens[half - start :]
        batch["prompt_mask"][i, start:half] = True
    return batch


def packed(lengths: tuple[int, ...] = LENGTHS) -> dict[str, Tensor]:
    """The same rows behind one another in one sequence."""
    rows = padded(lengths)
    there = rows["attention_mask"].bool()
    batch = {key: rows[key][there][None] for key in ("input_ids", "labels", "prompt_mask")}
    batch["position_ids"] = torch.cat([torch.arange(n) for n in lengths])[None]
    segments = torch.arange(len(lengths))
    batch["segment_ids"] = torch.repeat_interleave(segments, torch.tensor(lengths))[None]
    return batch


def prompts() -> tuple[Tensor, Tensor]:
    """Left-padded prompts and their mask."""
    batch = padded(left=True)
    return batch["input_ids"], batch["attention_mask"]
