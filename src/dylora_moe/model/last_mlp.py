"""The last block's MLP, computed only where something is learned.

Of what the last block gives, the loss reads the trained positions alone; its attention has to look
at every position, its MLP works on each by itself. That MLP is three quarters of a block, and two
thirds of a row are prompt. Knows one module, a mask and the gates' slot; knows no losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from dylora_moe.experts.gates import Gates, GateSlot
from dylora_moe.model.head import selecting


@contextmanager
def trained_only(
    head: nn.Module,
    mlp: nn.Module | None,
    mask: Bool[Tensor, "batch seq"],
    slot: GateSlot,
) -> Iterator[None]:
    """Within it the head, and the last block's MLP where there is one to ask, compute these
    positions alone."""
    with ExitStack() as stack:
        stack.enter_context(selecting(head, mask))
        if mlp is not None:
            stack.enter_context(computed_at(mlp, mask, slot))
        yield


@contextmanager
def computed_at(mlp: nn.Module, mask: Bool[Tensor, "batch seq"], slot: GateSlot) -> Iterator[None]:
    """Within it the module gives zeros at the other positions, and does not compute them.

    Args:
        mlp: works on each position by itself (`foundation.lean.gated_mlp`).
        mask: positions that are asked for.
        slot: whose gates the module's experts read; they are cut to these positions.
    """
    vars(mlp)["forward"] = _At(mlp.forward, mask, slot)
    try:
        yield
    finally:
        del vars(mlp)["forward"]


class _At:
    def __init__(self, forward: Callable[[Tensor], Tensor], mask: Tensor, slot: GateSlot) -> None:
        self._forward, self._mask, self._slot = forward, mask, slot

    def __call__(self, x: Tensor) -> Tensor:
        places = self._mask.to(x.device).flatten().nonzero()[:, 0]
        flat = x.reshape(-1, x.shape[-1])
        gates = self._slot.current
        with self._slot.bound(None if gates is None else at(gates, places, x.shape[1])):
            found = self._forward(flat.index_select(0, places)[None])[0]
        return torch.zeros_like(flat).index_copy(0, places, found).view_as(x)


def at(gates: Gates, places: Tensor, length: int) -> Gates:
    """Gates of a batch for some of its positions, `[1, n, experts]`.

    Args:
        gates: per row or per token.
        places: positions, counted through the batch.
        length: positions of a row.
    """
    if gates.uniform:
        # One weight for all: no layer multiplies by it.
        weights = gates.weights.flatten(0, -2)[:1]
    elif gates.weights.dim() == 3:
        weights = gates.weights.flatten(0, 1).index_select(0, places)[None]
    else:
        weights = gates.weights.index_select(0, places // length)[None]
    return Gates(gates.experts, weights, gates.most, gates.uniform)
