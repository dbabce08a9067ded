"""How many floating point operations a training step takes.

Knows parameter counts; measures nothing.
"""

from __future__ import annotations

import torch
from torch import nn

from dylora_moe.foundation.anatomy import Anatomy, blocks


def count_operations(
    model: nn.Module, anatomy: Anatomy, tokens: int, *, from_tap: bool, learns_from: int = 0
) -> int:
    """Operations of one forward and backward pass.

    A matrix of `p` parameters costs `2 p` per token forward, `2 p` for the gradient of its input
    and, if it learns, `2 p` for its own (Kaplan et al. 2020, section 2.1, without attention's
    score products). Below the tap nothing runs backward; a replayed trunk runs not at all.

    Args:
        model: the base with its adapters.
        anatomy: its blocks and tap.
        tokens: of the batch, with padding.
        from_tap: whether the trunk is replayed.
        learns_from: first block that learns, if that is above the tap; nothing runs backward below.
    """
    parts = blocks(model, anatomy)
    below = sum(_numbers(p) for block in parts[: anatomy.tap_layer] for p in block.parameters())
    above = [p for block in parts[anatomy.tap_layer :] for p in block.parameters()]
    above += list(model.get_submodule(anatomy.head_name).parameters())
    still = [p for block in parts[anatomy.tap_layer : learns_from] for p in block.parameters()]
    backward = sum(2 * _numbers(p) for p in above) - sum(2 * _numbers(p) for p in still)
    own = sum(2 * _numbers(p) for p in above if p.requires_grad)
    forward = 2 * sum(_numbers(p) for p in above) + (0 if from_tap else 2 * below)
    return tokens * (forward + backward + own)


def _numbers(parameter: nn.Parameter) -> int:
    """Weights in a parameter; of 4-bit ones two share a byte."""
    return parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)
