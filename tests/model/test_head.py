"""The loss without logits is the loss with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, Gemma2Config

from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.base import Base, wrap
from dylora_moe.model import dylora_moe, head
from dylora_moe.model.head import adding, answer_losses_of, ends_at_head
from tests.model.builders import model_of, packed, padded
from tests.models import D_MODEL, FAMILIES, tiny_base, tiny_tokenizer


@pytest.mark.parametrize("at_a_time", [1 << 24, 104 * 2])
def test_losses_and_gradient_equal_cross_entropy(
    at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_LOGITS", at_a_time)
    layer = nn.Linear(8, 104).requires_grad_(False)
    targets, weights = torch.randint(104, (7,)), torch.rand(7)
    gradients = []
    for form in ("without", "with"):
        hidden = torch.randn(7, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        if form == "without":
            losses = answer_losses_of(hidden, layer, targets).losses
        else:
            losses = functional.cross_entropy(layer(hidden), targets, reduction="none")
        (losses * weights).sum().backward()
        gradients.append((losses.detach(), hidden.grad))
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_without_logits_has_the_same_losses_and_gradients(family: str) -> None:
    model = model_of(family)
    model.experts.set_trainable(model.experts.names)
    batches = [padded()] + ([packed()] if model.base.anatomy.packs else [])
    for batch in batches:
        found = []
        for options in ({"loss_only": True}, {"trained_logits_only": True}, {}):
            output = model(**batch, **options)
            output.loss.backward()
            own = model.experts.trainable_parameters("expert_0")
            found.append((output, [p.grad.clone() for p in own]))
            model.zero_grad()
        assert found[0][0].logits is None
        for output, grads in found[1:]:
            assert torch.allclose(found[0][0].loss, output.loss, atol=1e-5)
            assert torch.allclose(found[0][0].row_losses, output.row_losses, atol=1e-5)
            for ours, theirs in zip(found[0][1], grads, strict=True):
                assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("at_a_time", [1 << 24, 104 * 2])
def test_where_asked_the_largest_logit_is_told_the_first_of_equal_ones(
    at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_LOGITS", at_a_time)
    layer = nn.Linear(8, 104, bias=False).requires_grad_(False)
    layer.weight[60:] = layer.weight[:44]
    hidden, targets = torch.randn(64, 8), torch.randint(104, (64,))
    found = answer_losses_of(hidden, layer, targets, greedy=True)
    assert found.greedy is not None
    assert torch.equal(found.greedy, layer(hidden).argmax(1))
    assert int(found.greedy.max()) < 60
    plain = answer_losses_of(hidden, layer, targets)
    assert plain.greedy is None
    assert torch.equal(plain.losses, found.losses)
    learning = answer_losses_of(hidden.requires_grad_(), layer, targets, greedy=True)
    assert torch.equal(learning.greedy, found.greedy)
    learning.losses.sum().backward()
    assert bool(hidden.grad.any())


@pytest.mark.parametrize("capped", [False, True])
def test_a_pass_that_is_asked_tells_what_greedy_decoding_would_write(capped: bool) -> None:
    model = model_of()
    if capped:
        model._ends_at_head = False
    batch = padded()
    with torch.no_grad():
        written = model(**batch, loss_only=True, greedy=True).greedy
        assert model(**batch, loss_only=True).greedy is None
        logits = model(**batch).logits
    there = batch["labels"][:, 1:] != -100
    assert torch.equal(written, logits[:, :-1][there].argmax(-1))


def test_logits_that_are_capped_behind_the_head_are_made() -> None:
    config = Gemma2Config(
        vocab_size=104,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        final_logit_softcapping=0.5,
        attn_logit_softcapping=None,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=4,
    )
    capped = wrap(AutoModelForCausalLM.from_config(config), tiny_tokenizer(), name="capped")
    assert not ends_at_head(capped)
    assert ends_at_head(tiny_base())


def test_whether_a_base_ends_at_its_head_is_asked_once_by_the_first_pass_without_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Base] = []

    def counted(base: Base) -> bool:
        asked.append(base)
        return ends_at_head(base)

    monkeypatch.setattr(dylora_moe, "ends_at_head", counted)
    model, passes = model_of(), []
    model.model.register_forward_pre_hook(lambda *_: passes.append(None))
    model(**padded())
    assert len(passes) == 1
    assert asked == []
    with model.experts.slot.bound(Gates.only("expert_0", 3)):
        expected = model(**padded(), trained_logits_only=True).loss
        for _ in range(2):
            assert torch.allclose(model(**padded(), loss_only=True).loss, expected, atol=1e-5)
    assert asked == [model.base]
    assert len(passes) == 5


def test_a_head_that_learns_is_left_alone() -> None:
    base = tiny_base()
    base.model.lm_head.weight.requires_grad_(True)
    assert not ends_at_head(base)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_a_vector_before_the_head_is_the_sum_over_its_rows_positions(
    family: str,
) -> None:
    model, batch = model_of(family), padded()
    vectors = torch.zeros(3, D_MODEL, requires_grad=True)
    hooks = dict(model._head._forward_pre_hooks)
    with adding(model._head, vectors):
        output = model(**batch, expert="base", loss_only=True, num_items_in_batch=1)
    (found,) = torch.autograd.grad(output.loss, vectors)
    with torch.no_grad(), model.passes.bound(None):
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        hidden = model.model.base_model(**inputs, use_cache=False)[0]
    hidden.requires_grad_()
    there = batch["labels"][:, 1:] != -100
    logits, targets = model._head(hidden[:, :-1][there]), batch["labels"][:, 1:][there]
    loss = functional.cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(output.loss, loss, atol=1e-4, rtol=1e-5)
    (expected,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(found, expected.sum(1), atol=1e-4, rtol=1e-4)
    assert dict(model._head._forward_pre_hooks) == hooks
