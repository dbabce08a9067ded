"""Frozen linear layers with 8- and 4-bit integer weights, on torch's own operators.

Knows numbers and kernels; knows nothing of models. Few rows go through the kernels that torch has
for CPUs and read the integers as they are; many rows, and every other device, multiply with the
weights unpacked for the moment. Both ways have gradients for the input, and neither keeps
anything of a pass.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn
from torch.nn import functional

KERNEL_ROWS = 16
"""The most input rows that the kernels are given; with more, unpacking pays for itself."""

_GROUPS = (64, 32)
_ZERO = 8


class IntegerLinear(nn.Linear):
    """A linear layer whose frozen weight is integers with scales; bias and results are not.

    Abstract: `product` and `transposed_product` say how it multiplies.

    Args:
        weight: the layer's weight in floating point, on the device it is to stay on.
        bias: its bias.
        dtype: the compute dtype, which the scales get.
    """

    def __init__(
        self,
        weight: Float[Tensor, "d_out d_in"],
        bias: Float[Tensor, " d_out"] | None,
        dtype: torch.dtype,
    ) -> None:
        d_out, d_in = weight.shape
        super().__init__(d_in, d_out, bias=False, device="meta")
        self.weight = nn.Parameter(self._encoded(weight.detach().float(), dtype), False)
        if bias is not None:
            self.bias = nn.Parameter(bias.detach().to(dtype), False)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """`x W^T + bias` in the dtype of `x`; x: `[..., d_in]`."""
        rows = x.reshape(-1, self.in_features)
        # Called without a graph where nothing below learns: a graph would hold on to the input.
        if torch.is_grad_enabled() and x.requires_grad:
            result: Tensor = _Product.apply(rows, self)
        else:
            result = self.product(rows)
        if self.bias is not None:
            result = result + self.bias
        return result.view(*x.shape[:-1], self.out_features)

    def product(self, rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        """`rows W^T`."""
        raise NotImplementedError

    def transposed_product(self, rows: Float[Tensor, "n d_out"]) -> Float[Tensor, "n d_in"]:
        """`rows W`, the gradient of the input."""
        raise NotImplementedError

    def _encoded(self, weight: Float[Tensor, "d_out d_in"], dtype: torch.dtype) -> Tensor:
        """Makes the integers, and the scales as buffers of this layer."""
        raise NotImplementedError


class Int8Linear(IntegerLinear):
    """8-bit weights, symmetric, one scale per output: `W = scale * q`, `q` from -127 to 127."""

    scale: Float[Tensor, " d_out"]

    def product(self, rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        """`rows W^T`: the scale is taken after the product, as it belongs to the output.

        Not in fp16, where a product with integers up to 127 leaves the range.
        """
        if _few(rows) and self.in_features % 32 == 0 and self.out_features % 16 == 0:
            # Other shapes make the kernel read beyond the end of the weight.
            return torch._weight_int8pack_mm(rows.contiguous(), self.weight, self.scale)
        if rows.dtype == torch.float16:
            return functional.linear(rows, self._scaled(rows.dtype))
        return functional.linear(rows, self.weight.to(rows.dtype)) * self.scale

    def transposed_product(self, rows: Float[Tensor, "n d_out"]) -> Float[Tensor, "n d_in"]:
        """`rows W`."""
        if rows.dtype == torch.float16:
            return rows @ self._scaled(rows.dtype)
        return (rows * self.scale) @ self.weight.to(rows.dtype)

    def _scaled(self, dtype: torch.dtype) -> Float[Tensor, "d_out d_in"]:
        return self.weight.to(dtype).mul_(self.scale[:, None].to(dtype))

    def _encoded(
        self, weight: Float[Tensor, "d_out d_in"], dtype: torch.dtype
    ) -> Int8[Tensor, "d_out d_in"]:
        self.register_buffer("scale", _scale(weight.abs().amax(dim=1) / 127, dtype))
        # With the rounded scale, so that its rounding is no error of the whole row.
        steps = weight / self.scale[:, None].float()
        return steps.round().clamp(-127, 127).to(torch.int8)


class Int4Linear(IntegerLinear):
    """4-bit weights in groups of 64 inputs: `W = scale * (q - 8) + zero`, `q` from 0 to 15.

    Two rows share a byte: within a block of rows, byte `i` of a column holds row `i` in its low
    half and row `i + block / 2` in its high half, which is how torch's kernel reads them on x86.
    The last group of a layer whose width no group divides is the whole row.

    Attributes:
        weight: `[d_out / block, d_in, block / 2]`, uint8.
        scales: `[d_in / group, d_out, 2]`: scale and zero.
    """

    scales: Float[Tensor, "groups d_out 2"]

    def product(self, rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        """`rows W^T`."""
        if _few(rows) and self._fits_kernel:
            packed = self.weight.view(self.out_features, -1)
            product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
                rows.contiguous(), packed, self._group, self.scales
            )
            return product
        return rows @ self._unpacked(rows.dtype)

    def transposed_product(self, rows: Float[Tensor, "n d_out"]) -> Float[Tensor, "n d_in"]:
        """`rows W`."""
        return rows @ self._unpacked(rows.dtype).T

    def _unpacked(self, dtype: torch.dtype) -> Float[Tensor, "d_in d_out"]:
        """The transposed weight in floating point."""
        blocks, d_in, half = self.weight.shape
        halves = torch.empty(d_in, blocks, 2, half, dtype=dtype, device=self.weight.device)
        # Written in place and shifted while they are bytes: each pass over floats is the cost here.
        halves[:, :, 0] = ((self.weight & 15).view(torch.int8) - _ZERO).transpose(0, 1)
        halves[:, :, 1] = ((self.weight >> 4).view(torch.int8) - _ZERO).transpose(0, 1)
        q = halves.view(d_in, -1)[:, : self.out_features]
        scales = self.scales.transpose(1, 2).contiguous()[:, :, None]
        grouped = q.unflatten(0, (-1, self._group))
        return torch.addcmul(scales[:, 1], grouped, scales[:, 0]).flatten(0, 1)

    def _encoded(
        self, weight: Float[Tensor, "d_out d_in"], dtype: torch.dtype
    ) -> UInt8[Tensor, "blocks d_in half"]:
        d_out, d_in = weight.shape
        self._group = next((group for group in _GROUPS if d_in % group == 0), d_in)
        block = kernel_block() if weight.device.type == "cpu" else None
        self._fits_kernel = block is not None and d_out % block == 0 and self._group in _GROUPS
        block = block if block is not None and self._fits_kernel else d_out + d_out % 2
        self._half = block // 2
        grouped = weight.view(d_out, -1, self._group)
        low, high = grouped.amin(-1), grouped.amax(-1)
        scale = _scale((high - low) / 15, dtype)
        zero = (low + _ZERO * scale.float()).to(dtype)
        steps = (grouped - zero[..., None].float()) / scale[..., None].float()
        q = (steps.round() + _ZERO).clamp(0, 15)
        stacked = torch.stack([scale, zero], dim=-1).transpose(0, 1).contiguous()
        self.register_buffer("scales", stacked)
        return _packed(q.view(d_out, d_in).to(torch.uint8), block)


class _Product(torch.autograd.Function):
    """`rows W^T` with a gradient for the rows, which unpacks the weight again."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, layer: IntegerLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.transposed_product(gradient), None


@functools.cache
def kernel_block() -> int | None:
    """Rows of a block in the layout that this processor's 4-bit kernel reads; None: another one.

    Asked of torch itself by packing a column of known rows, as the layout is the processor's.
    """
    for block in (64, 32):
        q = (torch.arange(128)[:, None] % 16).expand(128, 2).contiguous()
        q = q ^ (torch.arange(128)[:, None] // 16)
        theirs = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.to(torch.int32), 1)
        if torch.equal(theirs.flatten(), _packed(q.to(torch.uint8), block).flatten()):
            return block
    return None


def _packed(q: UInt8[Tensor, "d_out d_in"], block: int) -> UInt8[Tensor, "blocks d_in half"]:
    d_out, d_in = q.shape
    padded = functional.pad(q, (0, 0, 0, -d_out % block))
    halves = padded.view(-1, 2, block // 2, d_in)
    return (halves[:, 0] | (halves[:, 1] << 4)).transpose(1, 2).contiguous()


def _scale(step: Tensor, dtype: torch.dtype) -> Tensor:
    """The step between two numbers, never zero: all weights may be the same."""
    return step.to(dtype).clamp(min=torch.finfo(dtype).tiny)


def _few(rows: Tensor) -> bool:
    return rows.device.type == "cpu" and 0 < rows.shape[0] <= KERNEL_ROWS
