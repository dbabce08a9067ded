from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from dylora_moe.errors import ExpertError, RoutingError
from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.cache_name import CACHE, cache_of
from dylora_moe.foundation.trunk import trunk_states
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.model.loss import IGNORED
from tests.model.builders import LENGTHS, model_of, packed, padded
from tests.models import FAMILIES, PACKING_FAMILIES


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_no_expert_is_the_base_bit_for_bit(family: str) -> None:
    inputs = inputs_of(padded())
    expected = model_of(family, experts=0).model(**inputs, use_cache=False).logits
    empty, full = model_of(family, experts=0), model_of(family)
    zero = Gates(("expert_0", "expert_1"), torch.zeros(3, 2))
    assert torch.equal(empty(**inputs, use_cache=False).logits, expected)
    assert torch.equal(full(**inputs, expert="base", use_cache=False).logits, expected)
    assert torch.equal(full(**inputs, gates=zero, use_cache=False).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_pass_uses_the_routing_it_returns(family: str) -> None:
    model, inputs = model_of(family), inputs_of(padded())
    out = model(**inputs)
    assert isinstance(out, CausalLMOutputWithPast)
    weights = out.routing.weights
    assert weights.shape == (3, 2)
    assert torch.allclose(weights.sum(1), torch.ones(3))
    assert (weights > 0.01).all(), "the test needs a real mixture"
    assert torch.allclose(model(**inputs, gates=out.routing).logits, out.logits, atol=1e-5)
    assert not torch.allclose(model(**inputs, expert="base").logits, out.logits, atol=0.1)


@torch.no_grad()
def test_routed_twice_gives_the_same_whatever_came_between() -> None:
    model, inputs = model_of(), inputs_of(padded())
    first = model(**inputs)
    model(**inputs, expert="expert_1")
    model(**inputs_of(padded((5, 9))))
    with pytest.raises(ExpertError):
        model(**inputs, expert="expert_9")
    second = model(**inputs)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.routing.weights, second.routing.weights)
    assert model.experts.slot.current is None


@torch.no_grad()
def test_an_error_in_a_pass_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = model_of(), inputs_of(padded())
    before = model(**inputs).logits
    head = model.model.lm_head

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    handle = head.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        model(**inputs)
    handle.remove()
    assert model.experts.slot.current is None
    assert torch.equal(model(**inputs).logits, before)


@torch.no_grad()
def test_rows_of_a_batch_do_not_influence_each_other() -> None:
    model, batch = model_of(), padded()
    together = model(**inputs_of(batch))
    for i, length in enumerate(LENGTHS):
        alone = model(batch["input_ids"][i : i + 1, :length])
        assert torch.allclose(alone.logits[0], together.logits[i, :length], atol=1e-4)
        assert torch.allclose(alone.routing.weights[0], together.routing.weights[i], atol=1e-5)


@torch.no_grad()
def test_a_pinned_expert_is_used_until_all_are_active_again() -> None:
    model, inputs = model_of(), inputs_of(padded())
    routed, pinned = model(**inputs).logits, model(**inputs, expert="expert_1").logits
    model.experts.set_active_expert("expert_1")
    out = model(**inputs)
    assert out.routing is None
    assert torch.equal(out.logits, pinned)
    assert not torch.equal(model(**inputs, expert="base").logits, pinned)
    model.experts.activate_all_experts()
    assert torch.equal(model(**inputs).logits, routed)


@pytest.mark.parametrize("family", PACKING_FAMILIES)
def test_packed_rows_equal_unpacked_rows(family: str) -> None:
    model = model_of(family)
    apart, together = model(**padded()), model(**packed())
    assert torch.allclose(apart.routing.weights, together.routing.weights, atol=1e-5)
    assert torch.equal(apart.row_tokens, together.row_tokens)
    assert torch.allclose(apart.row_losses, together.row_losses, atol=1e-4)
    assert torch.allclose(apart.loss, together.loss, atol=1e-4)
    assert apart.row_losses.std() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_replayed_trunk_equals_the_whole_pass(family: str) -> None:
    model = model_of(family)
    layouts = [padded(), packed()] if family in PACKING_FAMILIES else [padded()]
    for batch in layouts:
        trunk = trunk_states(model.base, batch)
        without = {key: value for key, value in batch.items() if key != "input_ids"}
        for given in (batch, without):
            whole, replayed = model(**batch), model(**given, trunk=trunk)
            assert torch.allclose(whole.logits, replayed.logits, atol=1e-4)
            assert torch.allclose(whole.loss, replayed.loss, atol=1e-4)
            assert torch.allclose(whole.routing.weights, replayed.routing.weights, atol=1e-5)
        pinned = model(**batch, trunk=trunk, expert="expert_0")
        assert torch.allclose(pinned.loss, model(**batch, expert="expert_0").loss, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_at_trained_positions_are_those_of_the_whole(family: str) -> None:
    model, batch = model_of(family), padded()
    whole, few = model(**batch), model(**batch, trained_logits_only=True)
    trained = batch["labels"][:, 1:] != IGNORED
    assert few.logits.shape[0] == int(trained.sum()) == int(few.n_tokens)
    assert torch.allclose(few.logits, whole.logits[:, :-1][trained], atol=1e-4)
    assert torch.allclose(few.loss, whole.loss, atol=1e-5)


def test_the_loss_is_the_token_mean_of_fp32_cross_entropy() -> None:
    model, batch = model_of(), padded()
    out = model(**batch)
    stock = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    )
    assert torch.allclose(out.loss, stock, atol=1e-6)
    assert torch.allclose((out.row_losses * out.row_tokens).sum() / out.n_tokens, stock, atol=1e-5)
    half = model(**batch, num_items_in_batch=2 * int(out.n_tokens))
    assert torch.allclose(half.loss * 2, stock, atol=1e-5)
    nothing = model(**dict(batch, labels=torch.full_like(batch["labels"], IGNORED)))
    assert nothing.loss == 0


def test_half_precision_logits_are_raised_before_the_softmax() -> None:
    model = model_of(dtype=torch.bfloat16)
    out = model(**padded())
    assert out.logits.dtype == torch.bfloat16
    assert out.loss.dtype == torch.float32


@torch.no_grad()
def test_contradictions_are_refused() -> None:
    model, batch = model_of(), padded()
    inputs = inputs_of(batch)
    gates = Gates.only("expert_0", 3)
    cases = [
        (inputs | {"gates": gates, "expert": "expert_0"}, "both gates and an expert"),
        (inputs | {"gates": Gates.only("expert_0", 2)}, "gates for 2 rows and a batch of 3"),
        (inputs | {"labels": batch["labels"]}, "labels without prompt_mask"),
        (inputs | {"trained_logits_only": True}, "needs labels"),
        (packed() | {"attention_mask": torch.ones(1, 32)}, "packed rows would see each other"),
        (packed() | {"position_ids": None}, "packed rows would see each other"),
        ({"attention_mask": inputs["attention_mask"]}, "nothing to read"),
    ]
    for arguments, words in cases:
        with pytest.raises(RoutingError, match=words):
            model(**arguments)
    with pytest.raises(RoutingError, match="switch packing off"):
        model_of("mpt")(**packed())
    cache = cache_of(model(**inputs))
    with pytest.raises(RoutingError, match="continued cache"):
        model(torch.tensor([[7]] * 3), past_key_values=cache)
    with pytest.raises(ExpertError, match="no expert expert_9"):
        model(**inputs, expert="expert_9")


def test_a_router_of_another_width_is_refused() -> None:
    model = model_of()
    other = model_of(layers=12, tap=8)
    with pytest.raises(RoutingError, match="d_features"):
        DyLoRAMoE(model.base, other.router, model.experts)


@torch.no_grad()
def test_an_offloaded_expert_comes_back_when_it_is_routed_to() -> None:
    model, inputs = model_of(), inputs_of(padded())
    before = model(**inputs).logits
    for name in model.experts.names:
        model.experts.offload(name)
    assert model.experts.offloaded == model.experts.names
    assert torch.equal(model(**inputs).logits, before)
    assert model.experts.offloaded == ()


def test_it_tells_the_trainer_its_size_and_cost() -> None:
    model, batch = model_of(), padded()
    model.experts.set_trainable({"expert_0"})
    own = model.experts.parameter_count("expert_0")
    model.router.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == own
    assert model.num_parameters() - model.num_parameters(exclude_embeddings=True) == 104 * 32
    assert model.device.type == "cpu"
    assert model.dtype == torch.float32
    assert model.can_generate()
    assert model.main_input_name in batch
    whole = model.floating_point_ops(batch)
    replayed = model.floating_point_ops(batch | {"trunk": trunk_states(model.base, batch)})
    assert 0 < replayed < whole < 6 * batch["input_ids"].numel() * model.num_parameters()


def test_routing_is_a_field_beside_the_usual_ones() -> None:
    out = model_of()(**padded())
    names = {field.name for field in dataclasses.fields(out)}
    assert {"loss", "logits", CACHE, "routing", "n_tokens"} <= names
    assert out["loss"] is out.loss
