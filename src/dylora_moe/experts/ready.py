"""What a layer makes of its experts, kept: their stacks, and one set of gates for a generation.

Knows tensors and when they went stale; knows nothing of PEFT or of who keeps it.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dylora_moe.experts.products import stack

_FEW = 256
"""Tokens times ranks up to which 32-bit products are the faster ones on a CPU."""

_EXPERTS = 8
"""Experts in all kept stacks of a layer together, where the set in use is not larger itself: rows
that come to a running batch have sets of their own, and go."""

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


class Stacks:
    """Stacks of the sets of experts that a layer used last, LoRA's scaling in them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Any, tuple[Any, tuple[Tensor, Tensor]]] = OrderedDict()
        self._revision: int | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def forget(self) -> None:
        """Lets go of all."""
        self._kept.clear()

    def of(
        self,
        names: tuple[str, ...],
        matrices: tuple[Tensor, ...],
        scalings: tuple[float, ...],
        dtype: torch.dtype,
        revision: int,
    ) -> tuple[Tensor, Tensor]:
        """`A`s below one another `[sum of ranks, d_in]`, and `B`s turned, `[sum of ranks, d_out]`.

        Args:
            names: of the set, which must not be learning.
            matrices: their `A`s, then their `B`s.
            scalings: LoRA's alpha / rank of each.
            dtype: of the stacks.
            revision: of the experts; with another one everything kept is let go.
        """
        if revision != self._revision:
            self.forget()
            self._revision = revision
        # A model that was moved has its matrices elsewhere.
        place = matrices[0].device, matrices[0].data_ptr(), version(matrices), scalings
        kept = self._kept.get((names, dtype))
        if kept is None or kept[0] != place:
            kept = place, turned(matrices, scalings, dtype)
            self._kept[names, dtype] = kept
        self._kept.move_to_end((names, dtype))
        held = sum(len(set_of) for set_of, _ in self._kept)
        while held > max(_EXPERTS, len(names)):
            (oldest, _), _ = self._kept.popitem(last=False)
            held -= len(oldest)
        return kept[1]


def turned(
    matrices: tuple[Tensor, ...], scalings: tuple[float, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`A`s below one another, and `B`s scaled and turned, as a product of few rows reads them."""
    downs, ups = stack(matrices, dtype)
    scale: float | Tensor = scalings[0]
    if len(set(scalings)) > 1:
        each = [s for s, a in zip(scalings, matrices, strict=False) for _ in range(a.shape[0])]
        scale = torch.tensor(each, dtype=dtype, device=ups.device)[:, None]
    # Into a tensor of its own: the product of a turned one would be laid out as it is.
    return downs, torch.mul(ups.t(), scale, out=ups.new_empty(ups.shape[::-1]))


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
