"""Laws of the integer layers: what they approximate, their two ways, and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dylora_moe.foundation.integer_linear import (
    KERNEL_ROWS,
    Int4Linear,
    Int8Linear,
    IntegerLinear,
    kernel_block,
)

LAYERS = (Int8Linear, Int4Linear)
# The first two fit both kernels, the others one or none: odd widths, whole rows as groups.
SHAPES = ((128, 96), (64, 128), (48, 32), (32, 48), (7, 5), (1, 33))


def made(
    kind: type[IntegerLinear], shape: tuple[int, int], dtype: torch.dtype = torch.float32
) -> tuple[IntegerLinear, Tensor, Tensor]:
    """The layer, the weight it was made of and its bias."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(shape, generator=generator), torch.linspace(-1, 1, shape[0])
    return kind(weight, bias, dtype), weight, bias


def weight_of(layer: IntegerLinear) -> Tensor:
    """What the integers stand for, `[out, in]`: the images of the unit vectors."""
    units = torch.eye(layer.in_features, dtype=torch.float32)
    padding = torch.zeros(KERNEL_ROWS, layer.in_features)
    return layer.product(torch.cat([units, padding]))[: layer.in_features].T


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kind", "steps"), [(Int8Linear, 127), (Int4Linear, 7.5)])
def test_no_weight_is_further_off_than_half_a_step(
    kind: type[IntegerLinear], steps: float, shape: tuple[int, int]
) -> None:
    layer, weight, _ = made(kind, shape)
    step = weight.abs().amax(dim=1, keepdim=True) / steps
    assert bool(((weight_of(layer) - weight).abs() <= 0.501 * step).all())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", LAYERS)
def test_few_rows_and_many_give_the_same(kind: type[IntegerLinear], shape: tuple[int, int]) -> None:
    layer, _, bias = made(kind, shape)
    x = torch.randn(3, KERNEL_ROWS, shape[1])
    many = layer(x)
    few = torch.stack([layer(rows) for rows in x])
    torch.testing.assert_close(few, many, atol=5e-5, rtol=1e-5)
    wanted = functional.linear(x, weight_of(layer), bias)
    torch.testing.assert_close(many, wanted, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, KERNEL_ROWS, 40])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", LAYERS)
def test_the_input_has_its_gradient_after_a_pass_without_one(
    kind: type[IntegerLinear], shape: tuple[int, int], rows: int
) -> None:
    layer, _, _ = made(kind, shape)
    layer.eval()
    with torch.no_grad():
        layer(torch.randn(rows, shape[1]))
    x = torch.randn(rows, shape[1], requires_grad=True)
    result = layer(x)
    gradient = torch.randn_like(result)
    result.backward(gradient)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, gradient @ weight_of(layer), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
def test_with_a_graph_and_without_it_is_the_same_bit_for_bit(kind: type[IntegerLinear]) -> None:
    layer, _, _ = made(kind, (128, 96), torch.bfloat16)
    x = torch.randn(5, 96, dtype=torch.bfloat16)
    assert torch.equal(layer(x), layer(x.clone().requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_result_has_the_dtype_of_the_input(
    kind: type[IntegerLinear], dtype: torch.dtype
) -> None:
    layer, weight, bias = made(kind, (128, 96), dtype)
    for rows in (2, 40):
        x = torch.randn(rows, 96)
        got = layer(x.to(dtype))
        assert got.dtype == dtype
        wanted = functional.linear(x, weight, bias)
        error = (got.float() - wanted).norm() / wanted.norm()
        assert error < (0.015 if kind is Int8Linear else 0.12)


@pytest.mark.parametrize("rows", [2, 40])
@pytest.mark.parametrize("kind", LAYERS)
def test_results_and_gradients_around_1000_stay_within_fp16(
    kind: type[IntegerLinear], rows: int
) -> None:
    layer, weight, _ = made(kind, (128, 96), torch.float16)
    x = (100 * torch.randn(rows, 96)).half().requires_grad_()
    result = layer(x)
    assert result.detach().abs().max() > 1000
    wanted = x.detach().float() @ weight_of(made(kind, (128, 96))[0]).T
    assert (result.detach().float() - wanted).norm() / wanted.norm() < 0.02
    gradient = (100 * torch.randn(rows, 128)).half()
    result.backward(gradient)
    assert x.grad is not None
    wanted = gradient.float() @ weight
    error = (x.grad.float() - wanted).norm() / wanted.norm()
    assert error < (0.02 if kind is Int8Linear else 0.15)


def test_four_bits_take_half_a_byte_each_and_a_row_of_zeros_stays_zero() -> None:
    layer = Int4Linear(torch.zeros(128, 96), None, torch.float32)
    assert layer.weight.numel() == 128 * 96 // 2
    for rows in (1, 40):
        assert not layer(torch.randn(rows, 96)).any()
    assert not Int8Linear(torch.zeros(16, 32), None, torch.float32)(torch.randn(1, 32)).any()


@pytest.mark.skipif(kernel_block() is None, reason="this processor packs 4-bit weights otherwise")
def test_the_four_bit_kernel_is_used_where_the_shape_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, _, _ = made(Int4Linear, (128, 96))

    def unpack(*_: object) -> None:
        raise AssertionError("unpacked for one row")

    monkeypatch.setattr(layer, "_unpacked", unpack)
    layer(torch.randn(1, 96))
    with pytest.raises(AssertionError, match="unpacked"):
        layer(torch.randn(40, 96))
