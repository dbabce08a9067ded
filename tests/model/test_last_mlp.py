"""The last block's MLP computes the trained positions, and nothing that is learned changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.anatomy import blocks
from dylora_moe.foundation.lean import gated_mlp, use_lean_modules
from dylora_moe.model.dylora_moe import DyLoRAMoE
from tests.model.builders import model_of, packed, padded
from tests.model.test_gradients import grads, train_both


def lean_model() -> DyLoRAMoE:
    model = model_of("llama")
    use_lean_modules(model.model)
    vars(model)["_last_mlp"] = gated_mlp(blocks(model.model, model.base.anatomy)[-1])
    assert model._last_mlp is not None
    train_both(model)
    return model


def learned(
    model: DyLoRAMoE, batch: dict[str, Tensor], gates: Gates | None
) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    output = model(**batch, gates=gates, loss_only=True)
    output.loss.backward()
    there = {name: grad for name, grad in grads(model).items() if grad is not None}
    return torch.stack([output.loss.detach(), *output.row_losses]), there


WEIGHTS = torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.5, 0.2]])
CHOICES = {
    "routed": lambda batch: None,
    "one expert": lambda batch: Gates.only("expert_0", 3),
    "rows": lambda batch: Gates(("expert_0", "expert_1"), WEIGHTS),
    "tokens": lambda batch: Gates(
        ("expert_0", "expert_1"), torch.rand(*batch["input_ids"].shape, 2)
    ),
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("form", ["padded", "packed"])
def test_losses_and_gradients_are_those_of_the_whole_block(form: str, choice: str) -> None:
    model = lean_model()
    batch = padded((11, 7, 9)) if form == "padded" else packed((11, 7, 9))
    gates = CHOICES[choice](batch)
    losses, gradients = learned(model, batch, gates)
    vars(model)["_last_mlp"] = None
    expected, whole = learned(model, batch, gates)
    assert torch.allclose(losses, expected, atol=1e-5)
    assert gradients.keys() == whole.keys()
    assert all(torch.allclose(gradients[k], whole[k], atol=1e-5) for k in whole)


def test_only_trained_positions_go_through_it() -> None:
    model, batch = lean_model(), padded((11, 7, 9))
    seen: list[int] = []
    last = model._last_mlp
    assert last is not None
    last.down_proj.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[:-1].numel())
    )
    output = model(**batch, expert="expert_0", loss_only=True)
    assert seen[-1] == int(output.n_tokens)
    model(**batch, expert="expert_0")
    assert seen[-1] == batch["input_ids"].numel(), "who asks for all logits gets them"
    assert "forward" not in vars(last)


def test_recomputed_blocks_are_whole() -> None:
    model, batch = lean_model(), padded((11, 7, 9))
    expected = learned(model, batch, None)[1]
    model.gradient_checkpointing_enable()
    found = learned(model, batch, None)[1]
    assert all(torch.allclose(found[k], expected[k], atol=1e-5) for k in expected)
