"""Grouped attention gives what torch's own kernel gives, in every form a batch can have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, FalconConfig, FalconForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dylora_moe.foundation import attention
from dylora_moe.foundation.attention import (
    NAME,
    grouped_attention,
    grouped_mask,
    use_grouped_attention,
)
from dylora_moe.foundation.cache_name import CACHE
from tests.model.builders import packed, padded
from tests.models import FAMILIES, PACKING_FAMILIES, tiny

SWITCHED = tuple(family for family in FAMILIES if family != "mpt")
"""MPT has an attention of its own."""


def inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "position_ids")}


def grouped(family: str) -> PreTrainedModel:
    model = tiny(family)
    assert use_grouped_attention(model)
    assert model.config._attn_implementation == NAME
    return model


@torch.no_grad()
def real_logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    there = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    logits: Tensor = model(**inputs(batch), use_cache=False).logits
    return logits[there]


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("family", SWITCHED)
def test_padded_rows_equal_torchs_attention(family: str, left: bool) -> None:
    batch = padded(left=left)
    found, expected = real_logits(grouped(family), batch), real_logits(tiny(family), batch)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("family", [name for name in SWITCHED if name in PACKING_FAMILIES])
def test_packed_rows_see_only_themselves(family: str) -> None:
    found = real_logits(grouped(family), packed())
    assert torch.allclose(found, real_logits(tiny(family), padded()), atol=1e-4)


@pytest.mark.parametrize("family", SWITCHED)
@torch.no_grad()
def test_a_cached_token_equals_the_whole_row(family: str) -> None:
    model = grouped(family)
    ids = padded((9, 9))["input_ids"]
    cache = DynamicCache(config=model.config)
    model(ids[:, :8], **{CACHE: cache}, use_cache=True)
    step = model(ids[:, 8:], **{CACHE: cache}, use_cache=True).logits[:, -1]
    assert torch.allclose(step, model(ids, use_cache=False).logits[:, -1], atol=1e-4)


@pytest.mark.parametrize("few", [0, 1 << 20], ids=["products", "folded"])
@pytest.mark.parametrize("masked", [False, True])
def test_one_new_token_in_either_form_equals_torchs(
    few: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_FEW_SCORES", few)
    layer = nn.Module()
    layer.num_key_value_groups = 3
    query, (key, value) = torch.randn(2, 6, 1, 4), torch.randn(2, 2, 2, 9, 4)
    mask = None
    if masked:
        mask = torch.zeros(2, 1, 1, 9)
        mask[0, ..., :4] = torch.finfo(torch.float32).min / 2
    found, _ = grouped_attention(layer, query, key, value, mask, scaling=0.3)
    expected, _ = sdpa_attention_forward(layer, query, key, value, mask, scaling=0.3)
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_gradient_equals_torchs() -> None:
    found = []
    for model in (grouped("llama"), tiny("llama")):
        batch = padded()
        there = batch["attention_mask"].bool()
        model(**inputs(batch), use_cache=False).logits[there].square().mean().backward()
        found.append(model.model.layers[0].self_attn.k_proj.weight.grad)
    assert torch.allclose(found[0], found[1], atol=1e-5)


def test_long_rows_go_to_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    own = attention.sdpa_attention_forward

    def seen(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return own(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "sdpa_attention_forward", seen)
    model, batch = grouped("llama"), padded()
    short = real_logits(model, batch)
    assert not calls
    monkeypatch.setattr(attention, "MOST_SCORES", 1)
    assert torch.allclose(real_logits(model, batch), short, atol=1e-4)
    assert len(calls) == 4


def test_another_attention_stays_what_it_is() -> None:
    model = tiny("llama")
    model.set_attn_implementation("eager")
    assert not use_grouped_attention(model)
    assert model.config._attn_implementation == "eager"


def test_a_model_whose_code_asks_for_sdpa_by_name_stays_what_it_is() -> None:
    config = FalconConfig(
        vocab_size=104, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    model = FalconForCausalLM(config)
    assert model.config._attn_implementation == "sdpa"
    assert not use_grouped_attention(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_whose_code_cannot_be_read_stays_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreadable(_: object) -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr(attention.inspect, "getsource", unreadable)
    assert not use_grouped_attention(tiny("llama"))


def heads(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    module = nn.Module()
    module.num_key_value_groups = 2
    query, key, value = (torch.randn(2, n, 5, 8, generator=generator).to(dtype) for n in (4, 2, 2))
    return module, query, key, value


@pytest.mark.parametrize("unknown", ["bias", "boolean"])
def test_what_the_products_do_not_know_goes_to_torchs_kernel(unknown: str) -> None:
    module, query, key, value = heads()
    seen = torch.ones(5, 5).tril().bool().expand(2, 1, 5, 5)
    options = {"position_bias": torch.randn(1, 4, 5, 5)} if unknown == "bias" else {}
    mask = seen
    if unknown == "bias":
        mask = torch.zeros(2, 1, 5, 5).masked_fill(~seen, torch.finfo(torch.float32).min / 2)
    found, _ = grouped_attention(module, query, key, value, mask, **options)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, **options)
    assert torch.equal(found, expected)


def test_a_softcap_is_not_left_out() -> None:
    module, query, key, value = heads()
    mask = torch.zeros(2, 1, 5, 5)
    with pytest.raises(ValueError, match="softcap"):
        grouped_attention(module, query, key, value, mask, softcap=1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_row_that_sees_nothing_is_finite(dtype: torch.dtype) -> None:
    module, query, key, value = heads(dtype)
    mask = grouped_mask(
        batch_size=2,
        q_length=5,
        kv_length=5,
        dtype=dtype,
        attention_mask=torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]).bool(),
    )
    assert mask is not None
    assert (mask.amin() < -1e4).item()
    found, _ = grouped_attention(module, -30 * query.abs(), 30 * key.abs(), value, mask)
    assert found.isfinite().all()


def test_causal_rows_with_too_many_scores_get_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    config, lengths = tiny("llama").config, {"batch_size": 2, "q_length": 8, "kv_length": 8}
    scores = 2 * 4 * 8 * 8
    monkeypatch.setattr(attention, "MOST_SCORES", scores)
    assert grouped_mask(**lengths, config=config) is not None
    monkeypatch.setattr(attention, "MOST_SCORES", scores - 1)
    assert grouped_mask(**lengths, config=config) is None
    assert grouped_mask(**lengths, config=config, allow_is_causal_skip=False) is not None
    assert grouped_mask(**lengths) is not None
