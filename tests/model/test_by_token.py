"""Routing token by token: causal, and the same whichever way a row is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from dylora_moe.errors import BaseModelError, RoutingError
from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.cache_name import CACHE, cache_of
from dylora_moe.foundation.trunk import trunk_states
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.model.generation import generate
from dylora_moe.model.prefix_cache import PrefixCache
from dylora_moe.routing.routing import Granularity
from dylora_moe.routing.selection import SelectionRule, none_score
from tests.model.builders import LENGTHS, model_of, packed, padded, prompts
from tests.models import FAMILIES, PACKING_FAMILIES

OPTIONS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def by_token(family: str = "llama", **options: Any) -> DyLoRAMoE:
    """A gate in doubt between both experts, so that every token may change its mind."""
    model = model_of(family, **options)
    model.router.granularity = "token"
    ids, mask = prompts()
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).routing.logits[mask.bool()]
        apart = (logits[:, 1] - logits[:, 2]) * model.router.temperature
        model.router.correction.delta_b[2] += apart.mean()
        model.router.log_temperature.fill_(float((apart.std() / 2).log()))
    return model


def choosy(granularity: Granularity) -> DyLoRAMoE:
    """Mature experts, one at a time, each with one of the rows of `prompts`; the third has none."""
    model = by_token()
    router = model.router
    router.set_maturity({"expert_0": 1.0, "expert_1": 1.0})
    router.rule = SelectionRule(top_k=1)
    ids, mask = prompts()
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).routing.logits[:, -1] * router.temperature
        router.granularity = granularity
        # Their closed form alone says which is a stranger.
        closed = logits - router.correction.delta_b
        strange = none_score(closed)
        order = strange.argsort()
        router.none_threshold = float(strange[order[1:]].mean())
        apart = (logits[:, 1] - logits[:, 2])[order[:2]]
        router.correction.delta_b[2] += apart.mean()
        router.log_temperature.fill_(float((apart.std() / 10).log()))
    return model


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


def placed(family: str, mask: Tensor, last: int = 0) -> dict[str, Tensor]:
    """Mask and, for the last tokens, positions counted by it, as `generate` counts them."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -last:]
    told = {} if family == "mpt" else {"position_ids": positions}
    return {"attention_mask": mask, **told}


def close(a: Tensor, b: Tensor, atol: float = 1e-4) -> bool:
    return torch.allclose(a, b, atol=atol)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_token_is_routed_as_the_prompt_that_ends_with_it(family: str) -> None:
    model, inputs = by_token(family), inputs_of(padded(left=True))
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    weights = model(ids, **placed(family, mask)).routing.weights
    assert weights.shape == (3, max(LENGTHS), 2)
    assert (weights[2].max(0).values - weights[2].min(0).values > 0.05).all(), "it never moves"
    model.router.granularity = "sequence"
    for row, length in enumerate(LENGTHS):
        start = max(LENGTHS) - length
        assert not weights[row, :start].any(), "padding asks for no expert"
        for end in range(1, length + 1):
            tokens = ids[row : row + 1, start : start + end]
            alone = model(tokens).routing.weights[0]
            assert close(weights[row, start + end - 1], alone)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_comes_later_changes_nothing_before(family: str) -> None:
    model, ids = by_token(family), padded((14, 14))["input_ids"]
    other = ids.clone()
    other[:, 6:] = (ids[:, 6:] + 17) % 90 + 5
    before, after = model(ids), model(other)
    assert close(before.routing.weights[:, :6], after.routing.weights[:, :6], 1e-6)
    assert close(before.logits[:, :6], after.logits[:, :6])
    assert not close(before.routing.weights[:, 6:], after.routing.weights[:, 6:], 1e-2)


@torch.no_grad()
def test_neighbours_and_the_side_of_the_padding_do_not_matter() -> None:
    model = by_token()
    right, left = padded(), padded(left=True)
    ours, theirs = model(**inputs_of(right)), model(**inputs_of(left))
    for row, length in enumerate(LENGTHS):
        alone = model(right["input_ids"][row : row + 1, :length])
        for found, start in ((ours, 0), (theirs, max(LENGTHS) - length)):
            there = slice(start, start + length)
            assert close(found.logits[row, there], alone.logits[0])
            assert close(found.routing.weights[row, there], alone.routing.weights[0])


@torch.no_grad()
def test_answers_count_and_the_prompt_s_end_does_not() -> None:
    model, batch = by_token(), padded()
    told = model(**batch)
    assert torch.equal(told.routing.weights, model(**inputs_of(batch)).routing.weights)
    elsewhere = batch["prompt_mask"].roll(1, 1)
    moved = model(**dict(batch, prompt_mask=elsewhere))
    assert torch.equal(told.loss, moved.loss)
    del batch["prompt_mask"]
    assert torch.equal(told.loss, model(**batch).loss)


@pytest.mark.parametrize("family", PACKING_FAMILIES)
def test_packed_rows_equal_unpacked_rows(family: str) -> None:
    model = by_token(family)
    apart, together = model(**padded()), model(**packed())
    there = padded()["attention_mask"].bool()
    assert close(apart.routing.weights[there], together.routing.weights[0])
    assert close(apart.logits[there], together.logits[0])
    assert close(apart.row_losses, together.row_losses)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_replayed_trunk_equals_the_whole_pass(family: str) -> None:
    model = by_token(family)
    for batch in [padded(), packed()] if family in PACKING_FAMILIES else [padded()]:
        trunk = trunk_states(model.base, batch, per_token=True)
        whole, replayed = model(**batch), model(**batch, trunk=trunk)
        assert close(whole.logits, replayed.logits)
        assert close(whole.loss, replayed.loss)
        assert close(whole.routing.weights, replayed.routing.weights)
        assert torch.equal(model.passes.decided(trunk, batch).weights, replayed.routing.weights)
        given = model(**batch, gates=whole.routing)
        assert close(given.logits, whole.logits)


def test_states_of_the_tap_alone_are_refused() -> None:
    model, batch = by_token(), padded()
    with pytest.raises(BaseModelError, match="per_token=True"):
        model(**batch, trunk=trunk_states(model.base, batch))


@pytest.mark.parametrize("granularity", ["sequence", "token"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_cached_decode_gives_the_logits_of_reading_it_all_again(
    family: str, granularity: Granularity
) -> None:
    model = by_token(family)
    model.router.granularity = granularity
    ids, mask = prompts()
    out = model(ids, **placed(family, mask))
    routing = out.routing if granularity == "sequence" else None
    for _ in range(5):
        cache, new = cache_of(out), out.logits[:, -1:].argmax(-1)
        ids, mask = torch.cat([ids, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
        out = model(new, **placed(family, mask, 1), past_key_values=cache, gates=routing)
        whole = model(ids, **placed(family, mask), gates=routing, use_cache=False)
        assert close(out.logits[:, -1], whole.logits[:, -1])
        if granularity == "token":
            assert close(out.routing.weights[:, -1], whole.routing.weights[:, -1])


@pytest.mark.parametrize("family", FAMILIES)
def test_with_and_without_the_cache_it_writes_the_same(family: str) -> None:
    model = by_token(family)
    ids, mask = prompts()
    cached = generate(model, ids, mask, **OPTIONS)
    plain = generate(model, ids, mask, use_cache=False, **OPTIONS)
    assert torch.equal(cached.sequences, plain.sequences)
    assert close(cached.routing.weights, plain.routing.weights)
    model.router.granularity = "sequence"
    assert not torch.equal(cached.sequences, generate(model, ids, mask, **OPTIONS).sequences)


@pytest.mark.parametrize("granularity", ["sequence", "token"])
def test_rows_of_any_length_and_expert_are_answered_as_each_alone(granularity: Granularity) -> None:
    model = choosy(granularity)
    ids, mask = prompts()
    together = generate(model, ids, mask, **OPTIONS)
    weights = together.routing.weights.reshape(-1, 2)
    assert (weights[:, 0] == 1).any(), "nobody is on the first expert"
    assert (weights[:, 1] == 1).any(), "nobody is on the second expert"
    assert (weights.sum(1) == 0).any(), "everybody is on an expert"
    for row in range(3):
        start = int((mask[row] == 0).sum())
        alone = generate(model, ids[row : row + 1, start:], **OPTIONS)
        assert torch.equal(alone.answers[0], together.answers[row])
        assert torch.equal(alone.routing.weights[0], together.routing.weights[row])


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beams_carry_their_own_running_mean(options: dict[str, int]) -> None:
    model = by_token()
    ids, mask = prompts()
    found = generate(model, ids, mask, **OPTIONS, **options)
    plain = generate(model, ids, mask, use_cache=False, **OPTIONS, **options)
    assert torch.equal(found.sequences, plain.sequences)
    times = options.get("num_return_sequences", 1)
    mask = torch.cat([mask.repeat_interleave(times, 0), torch.ones_like(found.answers)], 1)
    with torch.no_grad():
        read = model(found.sequences, **placed("llama", mask)).routing.weights
    assert close(found.routing.weights, read[:, found.prompt_length - 1 : -1])


def test_sampled_sequences_are_each_routed_by_themselves() -> None:
    ids, mask = prompts()
    options = OPTIONS | {"do_sample": True, "num_return_sequences": 4}
    found = generate(by_token(), ids, mask, **options)
    assert found.routing.weights.shape == (12, 6, 2)
    assert not torch.equal(found.routing.weights[0, 1:], found.routing.weights[1, 1:])


@torch.no_grad()
def test_a_cache_that_is_not_of_the_rows_so_far_is_refused() -> None:
    model = by_token()
    ids, mask = prompts()
    new, longer = ids[:, :1], torch.cat([mask, mask[:, -1:]], 1)
    pinned = cache_of(model(ids, attention_mask=mask, expert="expert_0"))
    with pytest.raises(RoutingError, match="holds no running mean"):
        model(new, attention_mask=longer, past_key_values=pinned)
    cache = cache_of(model(ids, attention_mask=mask))
    model(new, attention_mask=longer, past_key_values=cache, expert="base")
    with pytest.raises(RoutingError, match="16 positions and the running mean 15"):
        model(new, attention_mask=torch.cat([longer, new], 1), past_key_values=cache)
    with pytest.raises(RoutingError, match="cannot take tokens back"):
        cache.crop(-1)


def test_what_would_route_wrongly_is_refused() -> None:
    model = by_token()
    ids, mask = prompts()
    weights = Gates(("expert_0",), torch.ones(3, 4, 1))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"cache_implementation": "static"}, "cache of its own"),
        ({CACHE: DynamicCache()}, "cache of its own"),
        ({"prompt_lookup_num_tokens": 2}, "prompt lookup"),
        ({"gates": weights}, "one row of weights for each prompt"),
    ]
    for options, words in cases:
        with pytest.raises(RoutingError, match=words):
            generate(model, ids, mask, **OPTIONS, **options)
    with pytest.raises(RoutingError, match="gates per token"):
        model(ids, attention_mask=mask, gates=weights)


@torch.no_grad()
def test_moving_the_rows_of_a_cache_moves_what_they_are_routed_by() -> None:
    model = by_token()
    ids, mask = prompts()
    order = torch.tensor([2, 2, 0])
    expected = cache_of(model(ids[order], attention_mask=mask[order]))
    for move in ("reorder_cache", "batch_select_indices"):
        cache = cache_of(model(ids, attention_mask=mask))
        assert isinstance(cache, PrefixCache)
        getattr(cache, move)(order)
        assert close(cache.prefix.total, expected.prefix.total)
        assert torch.equal(cache.prefix.count, expected.prefix.count)
    cache.batch_repeat_interleave(2)
    assert cache.prefix.count.tolist() == expected.prefix.count.repeat_interleave(2, 0).tolist()
    cache.reset()
    assert cache.prefix is None
    assert close(
        model(ids, attention_mask=mask, past_key_values=cache).logits,
        model(ids, attention_mask=mask).logits,
    )


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_the_gate_gets_the_same_finite_gradient_with_and_without_checkpointing(layout: str) -> None:
    batch = padded() if layout == "padded" else packed()
    found = []
    for checkpointing in (False, True):
        model = by_token()
        model.experts.set_trainable(model.experts.names)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        loss = model(**batch, trunk=trunk_states(model.base, batch, per_token=True)).loss
        # Another pass before the backward one: its gates must not be taken for this one's.
        model(**padded((5, 9)), expert="expert_0")
        loss.backward()
        found.append([p.grad for p in model.router.parameters()])
    for plain, again in zip(*found, strict=True):
        assert plain.isfinite().all()
        assert plain.abs().max() > 0
        assert close(plain, again, 1e-5)
