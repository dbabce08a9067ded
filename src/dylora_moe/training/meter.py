"""Counts what a phase used: tokens, seconds, operations, memory.

Knows numbers and a clock; knows nothing of what is trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch

from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.model.operations import count_operations
from dylora_moe.training.memory import used_bytes


@dataclass(slots=True)
class Meter:
    """Sums over the updates of a phase; survives in checkpoints.

    Attributes:
        tokens: real tokens of the rows trained on, prompts included, padding not.
        targets: trained tokens among them.
        seconds: spent in updates, without evaluations and checkpoints.
        flops: floating point operations of the updates.
        peak_memory_bytes: most memory seen (CUDA's peak; elsewhere the process's resident bytes).
    """

    tokens: int = 0
    targets: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    peak_memory_bytes: int = 0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def add(
        self,
        tokens: int,
        targets: int,
        flops: float,
        started: float,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Counts an update that began at `started` on the clock."""
        self.tokens += tokens
        self.targets += targets
        self.flops += flops
        self.seconds += clock() - started
        self.peak_memory_bytes = max(self.peak_memory_bytes, used_bytes(device))

    def state(self) -> dict[str, float]:
        """The sums as JSON values."""
        return asdict(self)

    def load(self, state: Mapping[str, float]) -> None:
        """The inverse of `state`."""
        for key, value in state.items():
            setattr(self, key, value)


def operations_per_token(model: DyLoRAMoE) -> tuple[int, int]:
    """Operations for a token in the blocks above the tap, and for a trained one in the head."""
    anatomy = model.base.anatomy
    head = 4 * sum(p.numel() for p in model.model.get_submodule(anatomy.head_name).parameters())
    first = model.experts.learns_from
    both = count_operations(model.model, anatomy, 1, from_tap=True, learns_from=first)
    return both - head, head
