"""A tiny base with experts whose matrices are random, `B` too, so that mixing shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dylora_moe.experts.gates import Gates
from dylora_moe.experts.manager import ExpertManager
from dylora_moe.foundation.anatomy import find_anatomy
from tests.models import tiny


def manager_of(family: str = "llama", **options: Any) -> ExpertManager:
    model = tiny(family, **options).requires_grad_(False)
    return ExpertManager(model, find_anatomy(model, tap=2), base_name=f"tiny-{family}")


def scramble(manager: ExpertManager, name: str, seed: int = 0, size: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    state = {
        key: torch.randn(value.shape, generator=generator) * size
        for key, value in manager.state(name).items()
    }
    manager.restore(name, state)


def with_experts(family: str = "llama", ranks: tuple[int, ...] = (4, 4), **options: Any) -> Any:
    manager = manager_of(family, **options)
    for i, rank in enumerate(ranks):
        manager.create_expert(f"expert_{i}", rank=rank, alpha=8.0)
        scramble(manager, f"expert_{i}", seed=i)
    return manager


def ids(batch: int = 2, seq: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(5, 100, (batch, seq), generator=torch.Generator().manual_seed(seed))


def logits(manager: ExpertManager, gates: Gates | None, tokens: Tensor | None = None) -> Tensor:
    model: PreTrainedModel = manager.model
    with torch.no_grad(), manager.slot.bound(gates):
        return model(ids() if tokens is None else tokens, use_cache=False).logits
