"""An expert's matrices in one flat tensor: what it is outside the model's layers.

Knows shapes and offsets; knows nothing of modules, files or devices' limits.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_ALIGNED = 64
"""Numbers that a matrix's place is a multiple of (256 bytes): products of the same numbers at
another alignment may round otherwise."""


@dataclass(frozen=True)
class Layout:
    """The shapes of an expert, and where each matrix lies in the flat tensor.

    Attributes:
        sites: path of each adapted module with the rank, `d_in` and `d_out` it has there.
    """

    sites: tuple[tuple[str, int, int, int], ...]

    @functools.cached_property
    def paths(self) -> tuple[str, ...]:
        """The adapted modules."""
        return tuple(path for path, *_ in self.sites)

    @functools.cached_property
    def highest_rank(self) -> int:
        """The largest rank of any site."""
        return max(rank for _, rank, _, _ in self.sites)

    @functools.cached_property
    def count(self) -> int:
        """Numbers in all matrices."""
        return sum(rank * (d_in + d_out) for _, rank, d_in, d_out in self.sites)

    @property
    def bytes(self) -> int:
        """Bytes of all matrices; an expert is fp32 wherever it lies."""
        return 4 * self.count

    @functools.cached_property
    def length(self) -> int:
        """Numbers of the flat tensor, the gaps between matrices included."""
        return sum(_room(rank * d_in) + _room(rank * d_out) for _, rank, d_in, d_out in self.sites)


@dataclass(frozen=True, eq=False)
class Packed:
    """The numbers of one expert.

    Attributes:
        layout: what lies where.
        flat: fp32 `[layout.length]` on any device.
    """

    layout: Layout
    flat: Float[Tensor, n]

    @classmethod
    def empty(cls, layout: Layout) -> Packed:
        """Room on the CPU, all zeros, so that the gaps between matrices are numbers too."""
        return cls(layout, torch.zeros(layout.length))

    @classmethod
    def of(cls, layout: Layout, matrices: Mapping[str, tuple[Tensor, Tensor]]) -> Packed:
        """Copies matrices from wherever they lie to the CPU."""
        packed = cls.empty(layout)
        with torch.no_grad():
            for path, (down, up) in packed.matrices().items():
                down.copy_(matrices[path][0])
                up.copy_(matrices[path][1])
        return packed

    def matrices(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Views of `A` `[rank, in]` and `B` `[out, rank]` of each path."""
        found, start = {}, 0
        for path, rank, d_in, d_out in self.layout.sites:
            middle = start + _room(rank * d_in)
            found[path] = (
                self.flat[start : start + rank * d_in].view(rank, d_in),
                self.flat[middle : middle + rank * d_out].view(d_out, rank),
            )
            start = middle + _room(rank * d_out)
        return found

    def to(self, device: torch.device) -> Packed:
        """A copy on a device, made in one go."""
        return Packed(self.layout, self.flat.to(device, non_blocking=True, copy=True))


def _room(numbers: int) -> int:
    return -(-numbers // _ALIGNED) * _ALIGNED
