"""Gradient checkpointing of the blocks above the tap.

Knows transformers' blocks and the gate slot; knows nothing of the pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from dylora_moe.errors import ConfigError
from dylora_moe.experts.gates import GateSlot, checkpoint_with_gates


def enable(
    adapted: Sequence[nn.Module],
    slot: GateSlot,
    kwargs: Mapping[str, Any] | None = None,
    every_n_layers: int = 1,
) -> None:
    """Recomputes blocks in the backward pass instead of keeping what is inside them.

    Args:
        adapted: the blocks above the tap. Below it nothing runs backward, so nothing is kept.
        slot: whose gates the recompute must see again.
        kwargs: for `torch.utils.checkpoint.checkpoint`.
        every_n_layers: checkpoints every so many blocks, from the tap on.

    Raises:
        ConfigError: reentrant checkpointing, or blocks that cannot be checkpointed.
    """
    run = checkpoint_with_gates(slot, **dict(kwargs or {}))
    for index, block in enumerate(adapted):
        if not isinstance(block, GradientCheckpointingLayer):
            raise ConfigError(
                f"{type(block).__name__} cannot be checkpointed; switch checkpointing off, and "
                "make the micro-batch smaller if memory is short"
            )
        block._gradient_checkpointing_func = run
        block.gradient_checkpointing = index % every_n_layers == 0


def disable(adapted: Sequence[nn.Module]) -> None:
    """Keeps every block's activations again."""
    for block in adapted:
        if isinstance(block, GradientCheckpointingLayer):
            block.gradient_checkpointing = False
