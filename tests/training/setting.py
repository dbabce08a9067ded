"""A tiny model with two experts and a fitted router, and rows it can learn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from dylora_moe.experts.manager import ExpertManager
from dylora_moe.foundation.base import Base
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.records import pair
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.text.template import encode
from dylora_moe.training.objective import Rehearsal
from dylora_moe.training.phases import Phase
from dylora_moe.training.rows import Rows
from tests.models import tiny_base

OWN, OTHER = "expert_2", "expert_1"


class Memory:
    """A reporter that keeps everything."""

    def __init__(self) -> None:
        self.logs: list[tuple[dict[str, Any], int | None]] = []
        self.closed = False

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.logs.append((values, step))

    def close(self) -> None:
        self.closed = True

    def names(self) -> set[str]:
        return {key for values, _ in self.logs for key in values}

    def series(self, key: str) -> list[Any]:
        return [values[key] for values, _ in self.logs if key in values]


def make_rows(base: Base, n: int, seed: int, letters: str = "abcdef", width: int = 8) -> Rows:
    """Rows `<letters>\\n<their first letter twice>` of varying length."""
    rng = random.Random(seed)
    encoded = []
    for _ in range(n):
        prompt = "".join(rng.choice(letters) for _ in range(rng.randint(3, width)))
        encoded.append(encode(pair(prompt, prompt[0] * 2), base.tokenizer))
    return Rows(tuple(encoded), TrunkCache(base, encoded))


def make_model(
    *,
    family: str = "llama",
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
    gate: str = "linear",
) -> tuple[DyLoRAMoE, Rows, Rows, Rehearsal]:
    """Model, training rows, validation rows and rehearsal; the skills of both experts are routed.

    `expert_1` has learned something (its B is not zero); `expert_2` is fresh.
    """
    base = tiny_base(family, dtype=dtype)
    torch.manual_seed(0)
    manager = ExpertManager(base.model, base.anatomy)
    for name in (OTHER, OWN):
        manager.create_expert(name, rank=4, dropout=dropout)
    with torch.no_grad():
        for key, parameter in manager.parameters_of(OTHER).items():
            if "lora_B" in key:
                parameter.normal_(std=0.05)
    train, valid = make_rows(base, 24, 1), make_rows(base, 10, 2)
    other = make_rows(base, 24, 3, letters="uvwxyz")
    router = DynamicHybridRouter(base.anatomy.d_features, gate=gate)  # type: ignore[arg-type]
    router.add_expert("skill_1", OTHER, FeatureStatistics.from_features(other.features))
    router.add_expert("skill_2", OWN, FeatureStatistics.from_features(train.features))
    model = DyLoRAMoE(base, router, manager)
    rehearsal = Rehearsal({"skill_1": other.features, "skill_2": train.features}, per_skill=4)
    return model, train, valid, rehearsal


def two_phases(**changes: Any) -> Sequence[Phase]:
    """A short seeding and a short consolidation."""
    first: dict[str, Any] = {
        "name": "seeding",
        "epochs": 1.0,
        "learning_rate": 5e-3,
        "batch_size": 4,
        "max_examples": 12,
        "collaboration": (0.5, 0.25),
        "scheduler": "warmup_stable_decay",
    }
    second: dict[str, Any] = {
        "name": "consolidation",
        "epochs": 2.0,
        "learning_rate": 5e-3,
        "batch_size": 4,
        "train_gate": True,
        "gate_learning_rate": 1e-2,
    }
    return [Phase(**(first | changes)), Phase(**(second | changes))]


def weights_of(model: DyLoRAMoE) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
