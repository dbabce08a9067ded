"""O-LoRA: subspaces that are orthogonal cost nothing, and only the new adapter is asked to move."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dylora_moe.evaluation.continual.arms.olora import Orthogonality


def adapter(down: torch.Tensor) -> dict[str, nn.Parameter]:
    return {
        "x.lora_A.weight": nn.Parameter(down),
        "x.lora_B.weight": nn.Parameter(torch.ones(5, 2)),
    }


EYE = torch.eye(6)


def test_orthogonal_subspaces_cost_nothing() -> None:
    earlier = [adapter(EYE[:2]), adapter(3 * EYE[2:4])]
    assert Orthogonality(earlier, adapter(EYE[4:])).value().item() == 0.0


def test_what_overlaps_costs_the_sum_of_absolute_products_with_all_earlier_ones() -> None:
    earlier = [adapter(torch.randn(2, 6)), adapter(torch.randn(2, 6))]
    own = adapter(torch.randn(2, 6))
    by_hand = sum(
        (one["x.lora_A.weight"] @ own["x.lora_A.weight"].T).abs().sum().item() for one in earlier
    )
    found = Orthogonality(earlier, own, strength=0.25).value().item()
    assert found == pytest.approx(0.25 * by_hand, rel=1e-5)


def test_the_paper_s_form_is_the_sum_of_squared_products() -> None:
    earlier, own = [adapter(torch.randn(2, 6))], adapter(torch.randn(2, 6))
    products = earlier[0]["x.lora_A.weight"] @ own["x.lora_A.weight"].T
    found = Orthogonality(earlier, own, strength=0.25, squared=True).value().item()
    assert found == pytest.approx(0.25 * products.square().sum().item(), rel=1e-5)
    assert Orthogonality([adapter(EYE[:2])], adapter(EYE[2:4]), squared=True).value().item() == 0


def test_the_gradient_is_of_the_new_adapter_s_a_alone_and_leads_out_of_the_earlier_subspace() -> (
    None
):
    earlier, own = [adapter(EYE[:2].clone())], adapter(torch.full((2, 6), 0.5))
    penalty = Orthogonality(earlier, own)
    penalty.value().backward()
    assert all(p.grad is None for p in earlier[0].values())
    assert own["x.lora_B.weight"].grad is None
    gradient = own["x.lora_A.weight"].grad
    assert gradient is not None
    assert bool((gradient[:, :2] > 0).all())
    assert not gradient[:, 2:].any()
    with torch.no_grad():
        own["x.lora_A.weight"] -= gradient
    assert penalty.value().item() == 0.0
