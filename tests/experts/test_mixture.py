from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from dylora_moe.experts import mixture
from dylora_moe.experts.gates import Gates, GateSlot
from dylora_moe.experts.mixture import MixtureLinear
from tests.experts.builders import ids, logits, manager_of, scramble, with_experts
from tests.models import FAMILIES, tiny

# Stock PEFT asks stock transformers by a name that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.mark.parametrize("family", FAMILIES)
def test_no_gates_are_the_base_bit_for_bit(family: str) -> None:
    manager = with_experts(family)
    with torch.no_grad():
        stock = tiny(family)(ids(), use_cache=False).logits
    assert torch.equal(logits(manager, None), stock)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_expert_at_weight_one_equals_plain_peft(family: str) -> None:
    manager = with_experts(family, ranks=(4, 4))
    stock = tiny(family)
    config = LoraConfig(
        r=4,
        lora_alpha=8.0,
        target_modules=list(manager.config("expert_1")["target_modules"]),
        layers_to_transform=[2, 3],
        layers_pattern=manager.anatomy.layers_pattern,
        fan_in_fan_out=family == "gpt2",
    )
    plain = get_peft_model(stock, config)
    names = dict(plain.named_parameters())
    with torch.no_grad():
        for key, value in manager.state("expert_1").items():
            names[key.replace(".weight", ".default.weight")].copy_(value)
        expected = plain(ids(), use_cache=False).logits
    found = logits(manager, Gates.only("expert_1", 2))
    assert (found - logits(manager, None)).abs().max() > 0.1
    assert torch.allclose(found, expected, atol=1e-4)


def test_rows_with_different_weights_and_ranks_equal_the_sum_of_their_loras() -> None:
    slot = GateSlot()
    base = torch.nn.Linear(6, 5)
    config = LoraConfig(r=2, lora_alpha=4)
    layer = MixtureLinear(base, "expert_a", config=config, slot=slot, r=2, lora_alpha=4)
    layer.update_layer("expert_b", 3, lora_alpha=5, config=LoraConfig(r=3, lora_alpha=5))
    for name in ("expert_a", "expert_b"):
        torch.nn.init.normal_(layer.lora_B[name].weight)
    weights = torch.tensor([[0.2, 0.8], [1.0, 0.0], [0.0, 0.0]])
    x = torch.randn(3, 4, 6)
    expected = base(x)
    for i, name in enumerate(("expert_a", "expert_b")):
        delta = x @ layer.lora_A[name].weight.T @ layer.lora_B[name].weight.T
        expected = expected + delta * layer.scaling[name] * weights[:, i, None, None]
    with slot.bound(Gates(("expert_a", "expert_b"), weights)):
        assert torch.allclose(layer(x), expected, atol=1e-5)
        # Some blocks flatten their rows.
        assert torch.allclose(layer(x.flatten(0, 1)), expected.flatten(0, 1), atol=1e-5)
        with torch.no_grad():
            assert torch.allclose(layer(x), expected, atol=1e-5)
    with slot.bound(Gates(("expert_b", "expert_a"), weights.flip(-1))):
        assert torch.allclose(layer(x), expected, atol=1e-5)


def test_a_layer_uses_the_experts_it_has() -> None:
    manager = manager_of()
    manager.create_expert("expert_all", rank=4)
    manager.create_expert("expert_attn", rank=4, targets="attention")
    scramble(manager, "expert_all", seed=1)
    scramble(manager, "expert_attn", seed=2)
    both = Gates(("expert_attn", "expert_all"), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert torch.allclose(
        logits(manager, both), logits(manager, Gates.only("expert_all", 2)), atol=1e-5
    )
    stranger = Gates(("expert_elsewhere",), torch.ones(2, 1))
    assert torch.equal(logits(manager, stranger), logits(manager, None))


def test_rows_of_a_batch_do_not_influence_each_other() -> None:
    manager = with_experts(ranks=(4, 2))
    tokens = ids(3)
    weights = torch.tensor([[1.0, 0.0], [0.3, 0.7], [0.0, 0.0]])
    together = logits(manager, Gates(("expert_0", "expert_1"), weights), tokens)
    for i in range(3):
        alone = Gates.chosen(("expert_0", "expert_1"), weights[i : i + 1])
        assert torch.allclose(together[i], logits(manager, alone, tokens[i : i + 1])[0], atol=1e-4)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_step_is_seen_by_the_next_inference(optimizer: type) -> None:
    manager = with_experts()
    gates = Gates(("expert_0", "expert_1"), torch.full((2, 2), 0.5))
    before = logits(manager, gates)
    manager.set_trainable({"expert_0"})
    with manager.slot.bound(gates):
        manager.model(ids(), use_cache=False).logits.square().mean().backward()
    middle = logits(manager, gates)
    assert torch.equal(middle, before)
    optimizer(manager.trainable_parameters("expert_0"), lr=0.1).step()
    after = logits(manager, gates)
    assert (after - before).abs().max() > 0.01
    with manager.slot.bound(gates):
        fresh = manager.model(ids(), use_cache=False).logits.detach()
    assert torch.allclose(after, fresh, atol=1e-5)


def test_inference_reuses_its_stacks_until_the_manager_changes_an_expert() -> None:
    manager = with_experts()
    layer = next(m for m in manager.model.modules() if isinstance(m, MixtureLinear))
    gates = Gates(("expert_0", "expert_1"), torch.full((2, 2), 0.5))
    first = logits(manager, gates)
    (kept,) = (stacks for _, stacks in layer._stacks._kept.values())
    # Other gates keep nothing yet, so that the layer's own stacks are asked for.
    logits(manager, Gates(gates.experts, gates.weights))
    (again,) = (stacks for _, stacks in layer._stacks._kept.values())
    assert again is kept
    scramble(manager, "expert_1", seed=9)
    assert (logits(manager, gates) - first).abs().max() > 0.01
    (anew,) = (stacks for _, stacks in layer._stacks._kept.values())
    assert anew is not kept


def test_dropout_falls_on_the_expert_that_has_it_and_not_on_its_neighbour() -> None:
    slot = GateSlot()
    base = torch.nn.Linear(6, 5)
    wet = LoraConfig(r=2, lora_alpha=2, lora_dropout=0.5)
    layer = MixtureLinear(base, "expert_wet", config=wet, slot=slot, r=2, lora_alpha=2)
    layer.update_layer("expert_dry", 2, lora_alpha=2, config=LoraConfig(r=2))
    for name in ("expert_wet", "expert_dry"):
        torch.nn.init.normal_(layer.lora_B[name].weight)
    x = torch.ones(1, 4, 6)
    both = ("expert_wet", "expert_dry")
    for weights, changes in ((torch.tensor([[0.0, 1.0]]), False), (torch.ones(1, 2), True)):
        with slot.bound(Gates(both, weights)):
            layer.train()
            wild = layer(x)
            layer.eval()
            assert torch.allclose(wild, layer(x), atol=1e-6) != changes


def test_disabled_and_merged_adapters_are_honoured() -> None:
    manager = with_experts()
    layers = [m for m in manager.model.modules() if isinstance(m, MixtureLinear)]
    gates = Gates.only("expert_0", 2)
    base, adapted = logits(manager, None), logits(manager, gates)
    for layer in layers:
        layer.merge(adapter_names=["expert_0"])
    assert torch.allclose(logits(manager, gates), adapted, atol=1e-4)
    for layer in layers:
        layer.enable_adapters(False)
    assert torch.allclose(logits(manager, gates), base, atol=1e-4)
    assert not any(layer.merged for layer in layers)


def test_a_bf16_base_has_fp32_masters_and_bf16_outputs() -> None:
    manager = with_experts(dtype=torch.bfloat16)
    assert {p.dtype for p in manager.parameters_of("expert_0").values()} == {torch.float32}
    manager.grow_rank("expert_0", 8)
    assert {p.dtype for p in manager.parameters_of("expert_0").values()} == {torch.float32}
    assert logits(manager, Gates.only("expert_0", 2)).dtype == torch.bfloat16


def test_the_layer_compiles_without_a_graph_break() -> None:
    manager = with_experts()
    layer = copy.deepcopy(next(m for m in manager.model.modules() if isinstance(m, MixtureLinear)))
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(2, 3, layer.in_features)
    with layer._slot.bound(Gates(("expert_0", "expert_1"), torch.full((2, 2), 0.5))):
        assert torch.allclose(compiled(x), layer(x), atol=1e-5)


def test_a_fused_optimizers_steps_are_seen_by_inference() -> None:
    manager = with_experts()
    manager.set_trainable({"expert_1"})
    gates = Gates.only("expert_1", 2)
    optimizer = torch.optim.AdamW(manager.trainable_parameters("expert_1"), lr=0.1, fused=True)
    seen = []
    for _ in range(2):
        with torch.no_grad():
            seen.append(logits(manager, gates))
        for parameter in manager.trainable_parameters("expert_1"):
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    manager.freeze()
    with torch.no_grad():
        seen.append(logits(manager, gates))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def spied(layer: MixtureLinear, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sparse forms that the layer takes."""
    taken: list[str] = []
    own = layer._sparse

    def sparse(*args: Any) -> torch.Tensor:
        taken.append(args[-1])
        return own(*args)

    monkeypatch.setattr(layer, "_sparse", sparse)
    return taken


def layer_of(experts: int, ranks: tuple[int, ...] = (2,)) -> MixtureLinear:
    slot = GateSlot()
    config = LoraConfig(r=ranks[0], lora_alpha=4)
    base = torch.nn.Linear(12, 8)
    layer = MixtureLinear(base, "expert_0", config=config, slot=slot, r=ranks[0], lora_alpha=4)
    for i in range(1, experts):
        rank = ranks[i % len(ranks)]
        layer.update_layer(
            f"expert_{i}", rank, lora_alpha=3, config=LoraConfig(r=rank, lora_alpha=3)
        )
    for i in range(experts):
        torch.nn.init.normal_(layer.lora_B[f"expert_{i}"].weight)
    # PEFT leaves the first expert learning and the others not.
    layer.requires_grad_(False)
    return layer


def learning(layer: MixtureLinear) -> MixtureLinear:
    """The same layer with every expert in training."""
    layer.lora_A.requires_grad_(True)
    layer.lora_B.requires_grad_(True)
    return layer


@pytest.mark.parametrize("gradients", [False, True])
def test_rows_on_experts_of_their_own_take_only_those(
    gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = layer_of(6, ranks=(2, 3))
    if gradients:
        learning(layer)
    taken = spied(layer, monkeypatch)
    weights = torch.eye(6)[[3, 1, 5, 0]]
    gates = Gates.chosen(tuple(f"expert_{i}" for i in range(6)), weights)
    x = torch.randn(4, 32, 12)
    with torch.set_grad_enabled(gradients), layer._slot.bound(gates):
        found = layer(x)
    assert taken == ["by row"]
    for row, expert in enumerate((3, 1, 5, 0)):
        with torch.no_grad(), layer._slot.bound(Gates.only(f"expert_{expert}", 1)):
            assert torch.allclose(found[row], layer(x[row : row + 1])[0], atol=1e-5)
    if gradients:
        found.sum().backward()
        assert layer.lora_B["expert_3"].weight.grad.abs().sum() > 0


def test_tokens_on_experts_of_their_own_take_only_those_where_products_are_grouped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = layer_of(20)
    names = tuple(f"expert_{i}" for i in range(20))
    weights = torch.eye(20)[torch.randint(20, (2, 40))]
    gates, x = Gates.chosen(names, weights), torch.randn(2, 40, 12)
    with torch.no_grad(), layer._slot.bound(gates):
        stacked = layer(x)
        taken = spied(layer, monkeypatch)
        own = mixture.cheapest
        monkeypatch.setattr(mixture, "cheapest", lambda **sizes: own(**sizes | {"grouped": True}))
        gates.kept.clear()
        grouped = layer(x)
    assert taken == ["by token"]
    assert torch.allclose(grouped, stacked, atol=1e-4)


def test_a_few_16_bit_tokens_are_multiplied_in_32_bits() -> None:
    layer = layer_of(3).bfloat16()
    gates = Gates(("expert_0", "expert_1", "expert_2"), torch.tensor([[0.2, 0.3, 0.5]]))
    x = torch.randn(1, 1, 12).bfloat16()
    with torch.no_grad(), layer._slot.bound(gates):
        found, again = layer(x), layer(x)
        long = layer(x.expand(1, 99, 12))
    assert torch.equal(found, again)
    assert found.dtype == long.dtype == torch.bfloat16
    assert torch.allclose(found.float(), long[:, :1].float(), atol=0.1)


@pytest.mark.parametrize("weights", [torch.eye(4), torch.eye(4)[None].expand(4, 4, 4)])
def test_sparse_gates_compile_without_a_graph_break(weights: torch.Tensor) -> None:
    layer = learning(layer_of(4))
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    gates = Gates.chosen(tuple(f"expert_{i}" for i in range(4)), weights)
    x = torch.randn(4, 4, 12)
    with layer._slot.bound(gates):
        assert torch.allclose(compiled(x), layer(x), atol=1e-5)
        compiled(x).sum().backward()
    assert layer.lora_B["expert_0"].weight.grad is not None
