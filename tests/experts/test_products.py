"""Every form of the mixture's products gives the same, and the choice follows their cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dylora_moe.experts.products import (
    StackedLinear,
    add_by_row,
    add_by_token,
    cheapest,
    gathered,
    pile,
    stack,
)

D_IN, D_OUT, RANKS = 12, 8, (2, 3, 2)


def matrices(seed: int = 0) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    downs = [torch.randn(r, D_IN, generator=draw) for r in RANKS]
    return (*downs, *(torch.randn(D_OUT, r, generator=draw) for r in RANKS))


def by_hand(x: Tensor, weights: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
    """Sum of the experts' deltas; `weights` broadcast over `x` with a last axis of experts."""
    n = len(parts) // 2
    deltas = [x @ parts[i].T @ parts[n + i].T * weights[..., i : i + 1] for i in range(n)]
    return torch.stack(deltas).sum(0)


def along(weights: Tensor) -> Tensor:
    return weights.repeat_interleave(torch.tensor(RANKS), -1)


@pytest.mark.parametrize("with_gate", [False, True])
def test_the_stacked_node_has_the_value_and_gradients_of_its_operations(with_gate: bool) -> None:
    x = torch.randn(2, 5, D_IN)
    weight, bias, scale = torch.randn(D_OUT, D_IN), torch.randn(D_OUT), 1.0 if with_gate else 0.5
    rows = torch.rand(2, 1, 3)
    found = []
    for form in ("node", "operations"):
        own = [one.clone().requires_grad_() for one in (x, rows, *matrices())]
        gate = along(own[1]) if with_gate else None
        if form == "node":
            y = StackedLinear.apply(own[0], weight, bias, gate, scale, *own[2:])
        else:
            given = own[1] if with_gate else torch.full((1, 1, 3), scale)
            y = own[0] @ weight.T + bias + by_hand(own[0], given, tuple(own[2:]))
        assert isinstance(y, Tensor)
        (y * torch.arange(D_OUT)).sum().backward()
        found.append([y.detach(), *(one.grad for one in own)])
    for node, operations in zip(*found, strict=True):
        if operations is None:
            assert node is None
        else:
            assert torch.allclose(node, operations, atol=1e-3, rtol=1e-4)


def test_only_what_learns_gets_a_gradient() -> None:
    parts = [one.clone() for one in matrices()]
    parts[1].requires_grad_()
    x = torch.randn(4, D_IN)
    y = StackedLinear.apply(x, torch.randn(D_OUT, D_IN), None, None, 1.0, *parts)
    assert isinstance(y, Tensor)
    y.sum().backward()
    assert [one.grad is not None for one in parts] == [False, True, False, False, False, False]


def node_and_operations(x: Tensor, dtype: torch.dtype) -> list[list[Tensor | None]]:
    """Output and gradients of the matrices and the gate, by the node and by hand."""
    weight, bias = torch.randn(D_OUT, D_IN, dtype=dtype), torch.randn(D_OUT, dtype=dtype)
    found = []
    for form in ("node", "operations"):
        gate, *own = [one.clone().requires_grad_() for one in (torch.ones(1, 7) * 0.5, *matrices())]
        cast = [one.to(dtype) for one in own]
        if form == "node":
            y = StackedLinear.apply(x, weight, bias, gate.to(dtype), 1.0, *own)
        else:
            downs, ups = torch.cat(cast[:3]), torch.cat(cast[3:], dim=1)
            y = x @ weight.T + bias + (x @ downs.T * gate.to(dtype)) @ ups.T
        assert isinstance(y, Tensor)
        assert y.dtype == dtype
        y.float().square().mean().backward()
        found.append([y.detach(), gate.grad, *(one.grad for one in own)])
    return found


def test_the_node_in_16_bits_gives_fp32_masters_their_gradients_in_fp32() -> None:
    x = torch.randn(2, 5, D_IN).bfloat16()
    node, operations = node_and_operations(x, torch.bfloat16)
    for mine, theirs in zip(node[1:], operations[1:], strict=True):
        assert mine is not None
        assert theirs is not None
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 0.05 * theirs.norm()


@pytest.mark.parametrize("shape", ["flat", "not contiguous"])
def test_the_node_takes_flat_inputs_and_those_that_lie_otherwise(shape: str) -> None:
    x = torch.randn(6, D_IN) if shape == "flat" else torch.randn(5, 2, D_IN).transpose(0, 1)
    assert x.is_contiguous() == (shape == "flat")
    node, operations = node_and_operations(x, torch.float32)
    for mine, theirs in zip(node, operations, strict=True):
        assert mine is not None
        assert theirs is not None
        assert torch.allclose(mine, theirs, atol=1e-4, rtol=1e-4)


def test_gathered_rows_equal_the_sum_by_hand() -> None:
    x, result = torch.randn(4, 6, D_IN), torch.randn(4, 6, D_OUT)
    weights = torch.tensor([[0.0, 1, 0], [0.3, 0, 0.7], [0, 0, 0], [0, 0.5, 0.5]])
    chosen = weights.topk(2).indices
    downs, ups = pile(matrices(), torch.float32)
    parts = gathered(downs, ups, chosen, weights.gather(1, chosen))
    expected = result + by_hand(x, weights[:, None], matrices())
    assert torch.allclose(add_by_row(result.clone(), x, *parts), expected, atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(add_by_row(result, x, *parts), expected, atol=1e-4)
        assert not torch.allclose(result, expected, atol=1e-4), "somebody else may hold it"
        add_by_row(result, x, *parts, in_place=True)
    assert torch.allclose(result, expected, atol=1e-4)


def test_grouped_tokens_equal_the_sum_by_hand_and_have_its_gradient() -> None:
    weights = torch.rand(9, 3)
    weights[weights < 0.3] = 0.0
    weights[4] = 0.0
    values, chosen = weights.topk(2)
    weights = torch.zeros_like(weights).scatter(1, chosen, values)
    gradients = []
    for form in ("grouped", "by hand"):
        own = [one.clone().requires_grad_() for one in matrices()]
        x = torch.randn(9, D_IN, generator=torch.Generator().manual_seed(1))
        result = torch.ones(9, D_OUT)
        if form == "grouped":
            downs, ups = pile(tuple(own), torch.float32)
            found = add_by_token(result, x, downs, ups, chosen, values)
        else:
            found = result + by_hand(x, weights, tuple(own))
        found.square().sum().backward()
        gradients.append([found.detach(), *(one.grad for one in own)])
    for grouped, hand in zip(*gradients, strict=True):
        assert torch.allclose(grouped, hand, atol=1e-3, rtol=1e-4)


def test_smaller_ranks_are_filled_with_zeros_to_what_a_gpu_takes() -> None:
    downs, ups = pile(matrices(), torch.bfloat16)
    assert downs.shape == (3, 8, D_IN)
    assert ups.shape == (3, 8, D_OUT)
    assert not downs[0, 2:].any()
    assert not ups[1, 3:].any()
    assert pile(matrices(), torch.float32)[0].shape == (3, 4, D_IN)
    assert pile(matrices(), torch.float64)[0].shape == (3, 4, D_IN)


def test_stacks_are_cast_and_in_order() -> None:
    downs, ups = stack(matrices(), torch.bfloat16)
    assert downs.dtype == ups.dtype == torch.bfloat16
    assert torch.equal(downs[2:5], matrices()[1].bfloat16())
    assert torch.equal(ups[:, 2:5], matrices()[4].bfloat16())


@pytest.mark.parametrize(
    ("rows", "length", "experts", "chosen", "form"),
    [
        (8, 256, 8, 1, "by row"),  # a prompt a row, each on its own expert
        (8, 1, 8, 1, "stacked"),  # a step of the same
        (4, 256, 8, 8, "stacked"),  # every row mixes all
        (64, 1, 64, 1, "by row"),  # a large batch of a server
        (8, 64, 1, 1, "stacked"),
    ],
)
def test_rows_take_the_form_that_costs_least(
    rows: int, length: int, experts: int, chosen: int, form: str
) -> None:
    sizes = {"rows": rows, "length": length, "experts": experts, "chosen": chosen}
    assert cheapest(**sizes, per_token=False, grouped=False) == form


@pytest.mark.parametrize(
    ("experts", "chosen", "grouped", "form"),
    [(64, 1, True, "by token"), (64, 1, False, "stacked"), (4, 2, True, "stacked")],
)
def test_tokens_are_grouped_where_there_is_a_kernel_and_many_experts(
    experts: int, chosen: int, grouped: bool, form: str
) -> None:
    found = cheapest(
        rows=4, length=256, experts=experts, chosen=chosen, per_token=True, grouped=grouped
    )
    assert found == form
