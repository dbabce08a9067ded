"""What a layer keeps between the steps of a generation, and when it must not use it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from dylora_moe.experts import mixture, ready
from dylora_moe.experts.gates import Gates
from dylora_moe.experts.mixture import MixtureLinear
from dylora_moe.experts.products import StackedLinear
from dylora_moe.experts.ready import Ready
from tests.experts.builders import logits, with_experts
from tests.experts.test_mixture import layer_of, learning

NAMES = tuple(f"expert_{i}" for i in range(6))


def mixed(count: int = 2) -> Gates:
    return Gates(NAMES[:count], torch.full((1, count), 0.5))


def by_row() -> Gates:
    gates = Gates.chosen(NAMES, torch.eye(6)[[3, 1, 5, 0]])
    assert gates is not None
    return gates


def test_what_is_kept_is_not_compiled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, gates, x = layer_of(2), mixed(), torch.randn(1, 1, 12)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.no_grad(), layer._slot.bound(gates):
        first = layer(x)
        assert layer in gates.kept
        monkeypatch.setattr(Ready, "output", lambda *_: torch.zeros(1, 1, 8))
        assert not layer(x).any()
        assert torch.allclose(compiled(x), first, atol=1e-5)


def test_kept_parts_of_a_generation_see_a_change_by_hand_and_by_the_manager() -> None:
    layer = layer_of(2)
    gates, x = Gates(("expert_0", "expert_1"), torch.full((1, 2), 0.5)), torch.randn(1, 1, 12)
    with torch.no_grad(), layer._slot.bound(gates):
        first = layer(x)
        assert layer in gates.kept
        assert torch.equal(layer(x), first)
        layer.lora_B["expert_1"].weight.mul_(3.0)
        second = layer(x)
        layer.lora_A["expert_1"].weight.data = layer.lora_A["expert_1"].weight.data * 2.0
        layer._slot.revision += 1
        third = layer(x)
    assert not torch.allclose(first, second)
    assert not torch.allclose(second, third)


def test_autocast_sees_the_operations_also_where_something_is_kept() -> None:
    layer, gates, x = layer_of(2), mixed(), torch.randn(1, 1, 12)
    with torch.no_grad(), layer._slot.bound(gates):
        assert layer(x).dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16


def test_what_is_kept_belongs_to_a_device() -> None:
    layer, gates, x = layer_of(2), mixed(), torch.randn(1, 1, 12)
    with torch.no_grad(), layer._slot.bound(gates):
        layer(x)
        assert gates.kept[layer].fits(x, layer._slot.revision)
        assert not gates.kept[layer].fits(x.to("meta"), layer._slot.revision)
        here = gates.along_rank(gates.experts, (2, 2), (1.0, 1.0), x)
        assert gates.along_rank(gates.experts, (2, 2), (1.0, 1.0), x) is here
        assert gates.along_rank(gates.experts, (2, 2), (1.0, 1.0), x.to("meta")) is not here


def test_rows_of_their_own_keep_what_was_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, gates, x = layer_of(6), by_row(), torch.randn(4, 32, 12)
    piled, own = [], mixture.pile

    def pile(*args: Any) -> tuple[Tensor, Tensor]:
        piled.append(args)
        return own(*args)

    monkeypatch.setattr(mixture, "pile", pile)
    with torch.no_grad(), layer._slot.bound(gates):
        first = layer(x)
        assert torch.equal(layer(x), first)
        assert len(piled) == 1
        layer.lora_B["expert_3"].weight.mul_(3.0)
        assert not torch.allclose(layer(x), first)
        learning(layer)
        layer(x)
        layer(x)
    assert len(piled) == 4


def test_sets_of_experts_are_stacked_once_while_few_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, x, made = layer_of(6), torch.randn(1, 3, 12), []
    own = ready.turned

    def turned(*args: Any) -> tuple[Tensor, Tensor]:
        made.append(args)
        return own(*args)

    monkeypatch.setattr(ready, "turned", turned)
    sets = [NAMES[:2], NAMES[2:3], NAMES[3:6]]
    with torch.no_grad():
        for names in [*sets, *sets]:
            gates = Gates(names, torch.full((1, len(names)), 0.5))
            with layer._slot.bound(gates):
                layer(x)
        assert len(made) == 3
        assert len(layer._stacks) == 3
        with layer._slot.bound(Gates(NAMES, torch.full((1, 6), 0.1))):
            layer(x)
        # Those that were used longest ago make room.
        assert len(layer._stacks) == 1
        layer._slot.revision += 1
        with layer._slot.bound(Gates(sets[1], torch.ones(1, 1))):
            layer(x)
        assert len(layer._stacks) == 1
    assert len(made) == 5


@pytest.mark.parametrize("length", [1, 3])
def test_stacks_of_unlike_scalings_come_to_the_plain_operations(length: int) -> None:
    layer, x = layer_of(3), torch.randn(1, length, 12)
    layer.scaling["expert_1"] = 0.25
    for weights in ([[0.5, 0.3, 0.1]], [[1.0, 0.0, 0.0]]):
        gates = Gates(NAMES[:3], torch.tensor(weights))
        with torch.no_grad(), layer._slot.bound(gates):
            plain = layer._base(x) + layer._delta(x, gates, NAMES[:3])
            for _ in range(2):
                assert torch.allclose(layer(x), plain, atol=1e-6)


def test_stacking_a_rank_of_one_leaves_the_expert_as_it_is() -> None:
    matrices = torch.randn(1, 6), torch.randn(5, 1)
    before = [one.clone() for one in matrices]
    _, ups = ready.turned(matrices, (3.0,), torch.float32)
    assert torch.equal(ups, before[1].t() * 3.0)
    assert all(torch.equal(*pair) for pair in zip(matrices, before, strict=True))
    assert ready.turned((torch.randn(2, 6), torch.randn(5, 2)), (3.0,), torch.float32)[
        1
    ].is_contiguous()


def test_an_expert_that_leaves_leaves_no_stack_behind() -> None:
    manager = with_experts()
    layers = [m for m in manager.model.modules() if isinstance(m, MixtureLinear)]
    logits(manager, Gates(("expert_0", "expert_1"), torch.full((2, 2), 0.5)))
    assert all(len(layer._stacks) for layer in layers)
    manager.offload("expert_1")
    assert not any(len(layer._stacks) for layer in layers)


@pytest.mark.parametrize("gates", [mixed(), by_row()], ids=["stacked", "by row"])
@pytest.mark.parametrize("steps", [1, 2])
def test_what_a_hook_of_the_base_holds_stays_the_bases(gates: Gates, steps: int) -> None:
    layer, x = layer_of(6), torch.randn(4, 32, 12)
    held: list[Tensor] = []
    layer.base_layer.register_forward_hook(lambda *args: held.append(args[-1]))
    with torch.no_grad(), layer._slot.bound(gates):
        for _ in range(steps):
            assert not torch.allclose(layer(x), held[-1])
    assert len(held) == steps
    assert all(torch.equal(one, torch.nn.functional.linear(x, *parts(layer))) for one in held)


def parts(layer: MixtureLinear) -> tuple[Tensor, Tensor]:
    return layer.base_layer.weight, layer.base_layer.bias


@pytest.mark.parametrize("place", ["weight", "bias"])
def test_a_base_that_learns_gets_its_gradient(place: str) -> None:
    layer = learning(layer_of(2))
    getattr(layer.base_layer, place).requires_grad_(True)
    with layer._slot.bound(mixed()):
        layer(torch.randn(1, 3, 12)).sum().backward()
    assert getattr(layer.base_layer, place).grad.abs().sum() > 0


@pytest.mark.parametrize("with_input", [True, False])
def test_the_node_over_conv1d_has_the_gradients_of_its_operations(
    with_input: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = with_experts("gpt2")
    manager.set_trainable({"expert_0", "expert_1"})
    layer = next(m for m in manager.model.modules() if isinstance(m, MixtureLinear))
    assert type(layer.base_layer) is Conv1D
    names = ("expert_0", "expert_1")
    x = torch.randn(2, 5, layer.in_features, requires_grad=with_input)
    weights = torch.tensor([[0.3, 0.7], [0.9, 0.1]], requires_grad=True)
    taken, node = [], StackedLinear.apply
    monkeypatch.setattr(StackedLinear, "apply", lambda *args: taken.append(1) or node(*args))
    found = []
    for form in ("node", "operations"):
        if form == "operations":
            monkeypatch.setattr(layer, "_needs_operations", lambda *_: True)
        with layer._slot.bound(Gates(names, weights)):
            y = layer(x)
        own = [layer.lora_A[n].weight for n in names] + [layer.lora_B[n].weight for n in names]
        wanted = [weights, *own, *([x] if with_input else [])]
        found.append([y, *torch.autograd.grad(y.square().sum(), wanted)])
    assert taken == [1]
    for mine, theirs in zip(*found, strict=True):
        assert mine.abs().sum() > 0
        assert torch.allclose(mine, theirs, atol=1e-2, rtol=1e-4)
