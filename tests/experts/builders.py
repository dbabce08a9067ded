"""A tiny base with experts whose matrices are random, `B` too, so that mixing shows."""

from __future__ import annotations

from pathlib import Path
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


def stored(tmp_path: Path, count: int = 3, family: str = "llama") -> tuple[ExpertManager, Path]:
    """A manager with no experts yet, and folders `0`, `1`, ... of saved ones."""
    source = with_experts(family, ranks=tuple(4 + i % 2 for i in range(count)))
    for i in range(count):
        source.save(f"expert_{i}", tmp_path / str(i))
    return manager_of(family), tmp_path


def registered(tmp_path: Path, count: int = 3, family: str = "llama") -> ExpertManager:
    """The same with those experts registered, and none of them read yet."""
    manager, folder = stored(tmp_path, count, family)
    for i in range(count):
        manager.register(f"expert_{i}", manager.stored(folder / str(i)))
    return manager
