"""What a layer makes of its experts and one set of gates, kept for the steps of a generation.

Knows tensors and when they went stale; knows nothing of PEFT or of who keeps it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_FEW = 256
"""Tokens times ranks up to which 32-bit products are the faster ones on a CPU."""

_version = operator.attrgetter("_version")


def version(matrices: tuple[Tensor, ...]) -> int:
    """Counts in-place changes by hand; those of the manager are the slot's `revision`."""
    return sum(map(_version, matrices))


def is_few(x: Tensor, ranks: int) -> bool:
    """Whether so little is multiplied that 16-bit products on a CPU cost more than 32-bit ones:
    a step's 154 layers of SmolLM2 4.2 ms against 1.2 ms at one token and rank 8."""
    if x.device.type != "cpu" or x.dtype == torch.float32:
        return False
    return x.numel() * ranks <= _FEW * x.shape[-1]


class Ready:
    """A layer with one set of gates, made once and used by every step of a generation.

    Args:
        x: an input of the layer; it fits others of its dtype, device and shape but for the last
            position.
        revision: of the experts.
        matrices: what the stacks were made of.
        downs: `A`s below one another.
        ups: `B`s side by side, transposed: `[sum of ranks, d_out]`.
        gate: what the hidden values are multiplied by; None where `ups` has it in it.
        frozen: the layer's weight and bias where it is a plain product.
    """

    __slots__ = ("_downs", "_frozen", "_gate", "_key", "_matrices", "_ups", "_version")

    def __init__(
        self,
        x: Tensor,
        revision: int,
        matrices: tuple[Tensor, ...],
        downs: Tensor,
        ups: Tensor,
        gate: Tensor | None,
        frozen: tuple[Tensor, Tensor | None] | None,
    ) -> None:
        self._key = (revision, x.dtype, x.device, x.shape[:-1])
        self._matrices, self._version = matrices, version(matrices)
        self._downs, self._ups, self._gate, self._frozen = downs, ups, gate, frozen

    def fits(self, x: Tensor, revision: int) -> bool:
        """Whether it was made for inputs like this one, of experts as they are now."""
        key = (revision, x.dtype, x.device, x.shape[:-1])
        return self._key == key and self._version == version(self._matrices)

    def output(self, x: Tensor, base: Callable[[Tensor], Tensor]) -> Tensor:
        """The layer's output; `base` is asked for the frozen part where it is no plain product."""
        # Not through the module: a call of one costs as much as the product of one token.
        result = base(x) if self._frozen is None else functional.linear(x, *self._frozen)
        down = functional.linear(x.to(self._downs.dtype), self._downs)
        if self._gate is not None:
            down = down * self._gate
        hidden = down.view(-1, down.shape[-1])
        if self._frozen is None:
            # Not in place: a hook of the module may hold what it gave.
            added = (hidden @ self._ups).view(result.shape)
            return result + added.to(result.dtype)
        flat = result.view(-1, result.shape[-1])
        if self._ups.dtype == flat.dtype:
            flat.addmm_(hidden, self._ups)
        else:
            flat.add_(hidden @ self._ups)
        return result
