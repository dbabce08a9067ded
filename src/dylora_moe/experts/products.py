"""The matrix products of the mixture: what a layer adds for its experts, in three forms.

- *stacked*: all experts side by side along the rank, `((x A^T) * gates) B^T`: two products for
  any number of experts. What an expert costs does not depend on how many rows chose it.
- *by row*: each row's own experts gathered, two batched products over `k` ranks instead of all.
- *by token*: each token's own experts, tokens sorted by expert, two grouped products.

Knows tensors; knows nothing of layers, gates or PEFT.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

Form = Literal["stacked", "by row", "by token"]

_SMALL = 1.5
"""Time of an operation in a batch of small products against one in a single large one."""

_GATHER = 8.0
"""Time of gathering one number of an expert's matrices, in operations of a product."""

_GROUPED = 4.0
"""The same as `_SMALL` for grouped products, sorting and adding the tokens back included."""

ALIGNED_BYTES = 16
"""Rows of the matrices that grouped products take are multiples of so many bytes."""


def cheapest(
    *, rows: int, length: int, experts: int, chosen: int, per_token: bool, grouped: bool
) -> Form:
    """The form of the products that costs least, by operations and numbers moved.

    Measured on 2 cores in bf16, 8 rows of 256 tokens on 8 experts of rank 8 and 576 features:
    0.45 ms stacked and 0.16 ms by row; with one token a row 0.041 ms and 0.051 ms.

    Args:
        rows: of the batch.
        length: tokens of each.
        experts: that count anywhere in the batch.
        chosen: the most that any row (or token) uses.
        per_token: weights differ from token to token.
        grouped: the device has a kernel for grouped products.
    """
    tokens = rows * length
    if per_token:
        pays = grouped and tokens * experts > _GROUPED * tokens * chosen + _GATHER * experts
        return "by token" if pays else "stacked"
    gathered = _SMALL * tokens * chosen + _GATHER * rows * chosen
    return "by row" if tokens * experts > gathered else "stacked"


class StackedLinear(torch.autograd.Function):
    """A frozen linear layer and its experts, stacked, as one node of the graph.

    `y = x W^T + b + scale * ((x A^T) * gate) B^T`. As separate operations every adapted layer
    costs a dozen nodes and three passes over its output; here the experts' part is added within
    the product, forward and backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*batch d_in"],
        weight: Float[Tensor, "d_out d_in"],
        bias: Float[Tensor, " d_out"] | None,
        gate: Tensor | None,
        scale: float,
        *matrices: Tensor,
    ) -> Float[Tensor, "*batch d_out"]:
        """The output in `x`'s dtype.

        Args:
            ctx: the graph's.
            x: the layer's input.
            weight, bias: frozen.
            gate: what `x A^T` is multiplied by, broadcast over the tokens; None for one.
            scale: a number instead of it.
            matrices: every expert's `A` `[rank, d_in]`, then every `B` `[d_out, rank]`.
        """
        downs, ups = stack(matrices, x.dtype)
        flat = x.reshape(-1, x.shape[-1])
        down = functional.linear(flat, downs)
        shape = (*x.shape[:-1], down.shape[-1])
        weighed = down if gate is None else (down.view(shape) * gate).view_as(down)
        result = functional.linear(flat, weight, bias)
        result.addmm_(weighed, ups.t(), alpha=scale)
        ctx.save_for_backward(x, weight, gate, down, downs, ups)
        ctx.scale, ctx.ranks = scale, [one.shape[0] for one in matrices[: len(matrices) // 2]]
        ctx.dtypes = [one.dtype for one in matrices]
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Any) -> Any:
        """Gradients of `x`, the gate and the matrices that ask for one."""
        return _backward(ctx, gradients[0])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, gate, down, downs, ups = ctx.saved_tensors
    wants_x, _, _, wants_gate, _, *wants = ctx.needs_input_grad
    flat, dy = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    shape = (*x.shape[:-1], down.shape[-1])
    back = dy @ ups
    if ctx.scale != 1.0:
        back *= ctx.scale
    d_gate = None
    if wants_gate:
        d_gate = (back.view(shape).float() * down.view(shape)).sum_to_size(gate.shape)
        d_gate = d_gate.to(gate.dtype)
    weighed, d_down = down, back
    if gate is not None:
        weighed = (down.view(shape) * gate).view_as(down)
        d_down = (back.view(shape) * gate).view_as(back)
    d_x = None
    if wants_x:
        d_x = (dy @ weight).addmm_(d_down, downs).view_as(x)
    n = len(ctx.ranks)
    found: list[Tensor | None] = [None] * (2 * n)
    if learn := [place for place in range(n) if wants[place]]:
        for place, part in zip(learn, _of(d_down, learn, ctx.ranks, flat), strict=True):
            found[place] = part.to(ctx.dtypes[place])
    if learn := [place for place in range(n) if wants[n + place]]:
        for place, part in zip(learn, _of(weighed, learn, ctx.ranks, dy), strict=True):
            part = part if ctx.scale == 1.0 else part * ctx.scale
            found[n + place] = _turned(part, ctx.dtypes[n + place])
    return d_x, None, None, d_gate, None, *found


def _of(hidden: Tensor, learn: list[int], ranks: list[int], other: Tensor) -> tuple[Tensor, ...]:
    """`hidden^T other` of the experts that learn, `[rank, width]` each; frozen neighbours cost
    nothing. Few rows are faster than few columns, so both sides' gradients are made this way."""
    if len(learn) < len(ranks):
        parts = hidden.split(ranks, dim=1)
        hidden = torch.cat([parts[place] for place in learn], dim=1)
    found: tuple[Tensor, ...] = (hidden.t() @ other).split([ranks[place] for place in learn])
    return found


def _turned(part: Tensor, dtype: torch.dtype) -> Tensor:
    """Transposed, laid out as the parameter is, and cast in one go."""
    return torch.empty(part.shape[::-1], dtype=dtype, device=part.device).copy_(part.t())


def stack(matrices: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`A`s below one another `[sum of ranks, d_in]` and `B`s side by side `[d_out, sum of ranks]`.

    Args:
        matrices: every expert's `A`, then every `B`.
        dtype: of the result.
    """
    n = len(matrices) // 2
    if n == 1:
        return matrices[0].to(dtype), matrices[1].to(dtype)
    # Cast before: the copies are half as large.
    downs = torch.cat([one.to(dtype) for one in matrices[:n]])
    return downs, torch.cat([one.to(dtype) for one in matrices[n:]], dim=1)


def pile(matrices: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Experts behind one another, `A` `[n, rank, d_in]` and `B` `[n, rank, d_out]`.

    Smaller ranks are filled up with zeros to the largest, and that to what grouped products
    take: a multiple of eight in 16-bit types, of four in 32-bit ones.
    """
    n = len(matrices) // 2
    ranks = [one.shape[0] for one in matrices[:n]]
    rank = max(ranks)
    rank += -rank % (ALIGNED_BYTES // dtype.itemsize)
    downs, ups = [], []
    for place, own in enumerate(ranks):
        downs.append(functional.pad(matrices[place].to(dtype), (0, 0, 0, rank - own)))
        ups.append(functional.pad(matrices[n + place].to(dtype).t(), (0, 0, 0, rank - own)))
    return torch.stack(downs), torch.stack(ups)


def gathered(
    downs: Float[Tensor, "n rank d_in"],
    ups: Float[Tensor, "n rank d_out"],
    chosen: Int[Tensor, "rows k"],
    gate: Float[Tensor, "rows k"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's experts side by side along the rank, as `add_by_row` takes them."""
    rank = downs.shape[1]
    return downs[chosen].flatten(1, 2), ups[chosen].flatten(1, 2), gate.repeat_interleave(rank, -1)


def add_by_row(
    result: Float[Tensor, "rows seq d_out"],
    x: Float[Tensor, "rows seq d_in"],
    downs: Float[Tensor, "rows ranks d_in"],
    ups: Float[Tensor, "rows ranks d_out"],
    gate: Float[Tensor, "rows ranks"],
    *,
    in_place: bool = False,
) -> Float[Tensor, "rows seq d_out"]:
    """`result` plus each row's own experts, whose matrices are gathered.

    `ranks` are those of the row's `k` experts side by side, `gate` weight times scaling of each.
    `in_place` writes into `result`: without gradients, where nobody else holds it.
    """
    hidden = torch.bmm(x, downs.transpose(1, 2)) * gate[:, None]
    return result.baddbmm_(hidden, ups) if in_place else torch.baddbmm(result, hidden, ups)


def add_by_token(
    result: Float[Tensor, "tokens d_out"],
    x: Float[Tensor, "tokens d_in"],
    downs: Float[Tensor, "n rank d_in"],
    ups: Float[Tensor, "n rank d_out"],
    chosen: Int[Tensor, "tokens k"],
    gate: Float[Tensor, "tokens k"],
) -> Float[Tensor, "tokens d_out"]:
    """`result` plus each token's own experts, by products grouped by expert.

    Args:
        result: the frozen layer's output.
        x: its input.
        downs, ups: of all experts of the batch (`pile`).
        chosen: each token's experts.
        gate: weight times scaling of each.
    """
    k = chosen.shape[1]
    order = chosen.flatten().argsort(stable=True)
    counts = torch.bincount(chosen.flatten(), minlength=downs.shape[0])
    ends = counts.cumsum(0).to(torch.int32)
    source = order // k
    hidden = functional.grouped_mm(x[source], downs.transpose(1, 2), offs=ends)
    hidden = hidden * gate.flatten()[order][:, None]
    return result.index_add(0, source, functional.grouped_mm(hidden, ups, offs=ends))
