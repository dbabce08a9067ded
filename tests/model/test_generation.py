from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from dylora_moe.errors import ExpertError, RoutingError
from dylora_moe.experts.gates import Gates
from dylora_moe.model.generation import generate
from tests.model.builders import model_of, prompts
from tests.models import FAMILIES

OPTIONS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


@pytest.mark.parametrize("family", FAMILIES)
def test_with_and_without_the_cache_it_writes_the_same(family: str) -> None:
    model = model_of(family)
    ids, mask = prompts()
    cached = generate(model, ids, mask, **OPTIONS)
    plain = generate(model, ids, mask, use_cache=False, **OPTIONS)
    assert torch.equal(cached.sequences, plain.sequences)
    assert cached.answers.shape == (3, 6)
    assert torch.equal(cached.routing.weights, plain.routing.weights)
    base = generate(model, ids, mask, expert="base", **OPTIONS)
    assert base.routing is None
    assert not torch.equal(base.sequences, cached.sequences)


def test_each_row_keeps_its_own_experts() -> None:
    model = model_of()
    ids, mask = prompts()
    names = ("expert_0", "expert_1")
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    mixed = generate(model, ids, mask, gates=Gates(names, weights), **OPTIONS)
    for row, name in enumerate((*names, "base")):
        alone = generate(model, ids, mask, expert=name, **OPTIONS)
        assert torch.equal(mixed.sequences[row], alone.sequences[row])


def test_prompts_alone_and_in_a_batch_are_answered_alike() -> None:
    model = model_of()
    ids, mask = prompts()
    together = generate(model, ids, mask, **OPTIONS)
    for row in range(3):
        start = int((mask[row] == 0).sum())
        alone = generate(model, ids[row : row + 1, start:], **OPTIONS)
        assert torch.equal(alone.answers[0], together.answers[row])


def test_twice_in_a_row_gives_the_same_also_after_another_call_and_an_error() -> None:
    model = model_of()
    ids, mask = prompts()
    first = generate(model, ids, mask, **OPTIONS)
    generate(model, ids[:1], expert="expert_1", **OPTIONS)

    class Broken(BaseStreamer):
        def put(self, value: Tensor) -> None:
            raise ConnectionError

        def end(self) -> None:
            raise AssertionError

    with pytest.raises(ConnectionError):
        generate(model, ids[:1], streamer=Broken(), **OPTIONS)
    assert model.experts.slot.current is None
    second = generate(model, ids, mask, **OPTIONS)
    assert torch.equal(first.sequences, second.sequences)
    assert torch.equal(first.routing.weights, second.routing.weights)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beams_of_a_prompt_share_its_routing(options: dict[str, int]) -> None:
    model = model_of()
    ids, mask = prompts()
    found = generate(model, ids, mask, **OPTIONS, **options)
    assert found.routing.weights.shape == (3, 2)
    given = generate(model, ids, mask, gates=found.routing, **OPTIONS, **options)
    assert torch.equal(found.sequences, given.sequences)
    times = options.get("num_return_sequences", 1)
    for row in range(3):
        weights = found.routing.weights[row : row + 1]
        alone = Gates(found.routing.experts, weights)
        start = int((mask[row] == 0).sum())
        one = generate(model, ids[row : row + 1, start:], gates=alone, **OPTIONS, **options)
        assert torch.equal(one.answers, found.answers[row * times : (row + 1) * times])


def test_sampled_sequences_of_a_prompt_are_as_many_as_asked_for() -> None:
    ids, mask = prompts()
    options = OPTIONS | {"do_sample": True, "num_return_sequences": 4}
    found = generate(model_of(), ids, mask, **options)
    assert found.answers.shape == (12, 6)
    assert found.routing.weights.shape == (3, 2)


def test_tokens_stream_as_they_fall() -> None:
    model = model_of()
    ids, _ = prompts()
    heard: list[int] = []

    class Listener(BaseStreamer):
        def put(self, value: Tensor) -> None:
            heard.extend(value.flatten().tolist())

        def end(self) -> None:
            heard.append(-1)

    found = generate(model, ids[2:], streamer=Listener(), **OPTIONS)
    assert heard == [*found.sequences[0].tolist(), -1]


def test_it_runs_in_eval_mode_and_puts_the_mode_back() -> None:
    model = model_of()
    model.experts.create_expert("expert_wet", dropout=0.9)
    ids, mask = prompts()
    expected = generate(model, ids, mask, expert="expert_0", **OPTIONS).sequences
    model.gradient_checkpointing_enable()
    model.train()
    assert torch.equal(generate(model, ids, mask, expert="expert_0", **OPTIONS).sequences, expected)
    assert model.training
    model.experts.set_active_expert("expert_0")
    assert torch.equal(generate(model, ids, mask, **OPTIONS).sequences, expected)


def test_what_would_route_wrongly_is_refused() -> None:
    model = model_of()
    ids, mask = prompts()
    chunked = GenerationConfig(prefill_chunk_size=4)
    gates = Gates.only("expert_0", 3)
    with pytest.raises(RoutingError, match="prefill_chunk_size"):
        generate(model, ids, mask, prefill_chunk_size=4, **OPTIONS)
    with pytest.raises(RoutingError, match="prefill_chunk_size"):
        generate(model, ids, mask, generation_config=chunked)
    with pytest.raises(RoutingError, match="left"):
        generate(model, ids.flip(1), mask.flip(1), **OPTIONS)
    with pytest.raises(RoutingError, match="3 prompts"):
        generate(model, ids, mask, gates=Gates.only("expert_0", 2), **OPTIONS)
    with pytest.raises(RoutingError, match="both"):
        generate(model, ids, mask, gates=gates, expert="expert_0", **OPTIONS)
    with pytest.raises(ExpertError, match="no expert expert_9"):
        generate(model, ids, mask, expert="expert_9", **OPTIONS)
