from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dylora_moe.errors import ConfigError
from dylora_moe.foundation.anatomy import blocks
from dylora_moe.foundation.trunk import trunk_states
from dylora_moe.model.dylora_moe import DyLoRAMoE
from tests.model.builders import model_of, padded
from tests.models import FAMILIES

Grads = dict[str, Tensor | None]


def train_both(model: DyLoRAMoE) -> None:
    model.experts.set_trainable(model.experts.names)
    model.train()


def grads(model: DyLoRAMoE) -> Grads:
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def same(first: Grads, second: Grads) -> bool:
    assert first.keys() == second.keys()
    assert first
    return all(
        (a is None) == (b is None) and (a is None or torch.allclose(a, b, atol=1e-5))
        for a, b in ((first[key], second[key]) for key in first)
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_gate_parameter_and_every_matrix_learns_and_nothing_frozen_does(
    family: str, checkpointing: bool
) -> None:
    model = model_of(family, random=False)
    if checkpointing:
        model.gradient_checkpointing_enable()
    train_both(model)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for step in range(2):
        optimizer.zero_grad()
        model(**padded()).loss.backward()
        counted = 0
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                assert parameter.grad is None, name
                continue
            counted += 1
            # B is zero at first, so nothing reaches A and the gate before its first step.
            if step == 1 or "lora_B" in name:
                assert parameter.grad is not None, name
                assert parameter.grad.abs().max() > 0, name
        optimizer.step()
    inside = len([n for n in frozen if "base_layer.weight" in n])
    assert counted == 2 * 2 * inside + len(list(model.router.parameters()))
    for name, value in frozen.items():
        assert torch.equal(dict(model.named_parameters())[name], value), name
    head = model.model.get_submodule(model.base.anatomy.head_name)
    assert not any(p.requires_grad for p in head.parameters())


def test_training_one_expert_leaves_the_other_bit_identical() -> None:
    model = model_of()
    model.experts.set_trainable({"expert_1"})
    model.train()
    other, own = model.experts.state("expert_0"), model.experts.state("expert_1")
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    for _ in range(2):
        model(**padded()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    now = model.experts.state("expert_0")
    assert all(torch.equal(now[key], other[key]) for key in other)
    now = model.experts.state("expert_1")
    assert not any(torch.equal(now[key], own[key]) for key in own)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_changes_no_gradient(family: str) -> None:
    model = model_of(family)
    train_both(model)
    model(**padded()).loss.backward()
    expected = grads(model)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    calls = count_recomputes(model)
    model(**padded()).loss.backward()
    assert same(grads(model), expected)
    assert calls == [1, 1, 2, 2], "only blocks above the tap are run again"


@pytest.mark.parametrize("set_to_none", [False, True])
def test_no_gradient_of_experts_or_router_is_left(set_to_none: bool) -> None:
    model = model_of()
    train_both(model)
    model(**padded()).loss.backward()
    assert grads(model)
    model.zero_grad(set_to_none)
    left = [p.grad for p in model.parameters() if p.grad is not None]
    assert bool(left) is not set_to_none
    assert not any(grad.any() for grad in left)


def count_recomputes(model: DyLoRAMoE) -> list[int]:
    parts = blocks(model.model, model.base.anatomy)
    calls = [0] * len(parts)
    for index, block in enumerate(parts):
        # Hooks lie outside of transformers' checkpoint; a layer norm lies inside.
        inner = next(m for m in block.modules() if "norm" in type(m).__name__.lower())

        def count(module: object, args: object, output: object, index: int = index) -> None:
            calls[index] += 1

        inner.register_forward_hook(count)
    return calls


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_forwards_before_one_backward_give_both_gradients(checkpointing: bool) -> None:
    model = model_of()
    train_both(model)
    first, second = padded((11, 7)), padded((9, 13, 5))
    model(**first).loss.backward()
    model(**second).loss.backward()
    expected = grads(model)
    model.zero_grad()
    if checkpointing:
        model.gradient_checkpointing_enable()
    losses = model(**first).loss, model(**second).loss
    with torch.no_grad():
        model(**first, expert="base")
    (losses[0] + losses[1]).backward()
    assert same(grads(model), expected)


def test_checkpointing_with_a_replayed_trunk_gives_the_same_gradients() -> None:
    model, batch = model_of(), padded()
    train_both(model)
    model(**batch).loss.backward()
    expected = grads(model)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    trunk = trunk_states(model.base, batch)
    model(**batch, trunk=trunk, trained_logits_only=True).loss.backward()
    assert same(grads(model), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_backward_does_not_run_below_the_tap(checkpointing: bool) -> None:
    model = model_of()
    if checkpointing:
        model.gradient_checkpointing_enable()
    train_both(model)
    parts = blocks(model.model, model.base.anatomy)
    needs: list[bool] = []
    for block in parts:
        block.register_forward_hook(lambda _m, _a, out: needs.append(out.requires_grad))
    model(**padded())
    assert needs == [False, False, True, True]


def test_checkpointing_can_be_switched_off_and_reentrant_is_refused() -> None:
    model = model_of()
    with pytest.raises(ConfigError, match="use_reentrant"):
        model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ConfigError, match="offload"):
        model.gradient_checkpointing_enable(offload=True)
    assert not model.is_gradient_checkpointing
    model.activation_checkpointing_enable({"use_reentrant": False}, every_n_layers=2)
    train_both(model)
    calls = count_recomputes(model)
    model(**padded()).loss.backward()
    assert calls == [1, 1, 2, 1]
    model.activation_checkpointing_disable()
    model(**padded()).loss.backward()
    assert calls == [2, 2, 3, 2]


def test_the_base_stays_in_eval_mode_and_only_the_expert_that_learns_drops() -> None:
    model = model_of()
    model.experts.create_expert("expert_wet", dropout=0.5)
    model.experts.create_expert("expert_frozen", dropout=0.5)
    model.experts.set_trainable({"expert_wet"})
    model.train()
    wet = [m for n, m in model.model.named_modules() if n.endswith("lora_dropout.expert_wet")]
    assert wet
    assert all(m.training for m in wet)
    assert not any(
        m.training for n, m in model.model.named_modules() if not n.endswith("dropout.expert_wet")
    )
    assert model.router.training
    model.experts.set_trainable({"expert_frozen"})
    assert not any(m.training for m in wet)
    model.eval()
    assert not any(m.training for m in model.modules())
