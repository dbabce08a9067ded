"""Answers: who gives them, when they end, and that nothing else changes them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from dylora_moe.build.pool import Pool
from dylora_moe.errors import ConfigError, DataError, PoolError
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.lifecycle import answering
from dylora_moe.lifecycle.answering import Sampling, answer, prompt_features
from dylora_moe.records import Turn
from tests.models import MAX_POSITIONS
from tests.pools import LETTERS, PROMPTS, rows


@pytest.fixture(scope="module")
def pool(taught_folder: Path) -> Pool:
    """Read only, so that it need not be copied."""
    return Pool.open(taught_folder, device="cpu", dtype="fp32")


def test_prompts_of_a_batch_are_answered_as_each_alone(pool: Pool) -> None:
    together = pool.generate(PROMPTS, max_new_tokens=12)
    alone = [pool.generate(prompt, max_new_tokens=12) for prompt in PROMPTS]
    assert [a.text for a in together] == [a.text for a in alone]
    assert [a.expert for a in together] == [a.expert for a in alone]
    assert {a.expert for a in together} >= {"letters", "digits"}


def test_an_answer_says_who_gave_it(pool: Pool) -> None:
    found = pool.generate("abcdef", max_new_tokens=3)
    assert (found.expert, found.version) == ("letters", 1)
    assert sum(found.weights.values()) == pytest.approx(1.0)
    assert 0 <= found.none <= 1
    assert str(found) == found.text
    assert pool.generate("abcdef", expert="digits", max_new_tokens=3).weights == {"digits": 1.0}


def test_the_base_named_answers_as_the_base_alone(pool: Pool) -> None:
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(pool.meta["base"])
    ids = torch.tensor([pool.live.base.tokenizer("abcdef\n")["input_ids"]])
    expected = stock.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    found = pool.generate("abcdef", expert="base", max_new_tokens=8)
    assert found.text == pool.live.base.tokenizer.decode(expected, skip_special_tokens=True)
    assert (found.expert, found.version, found.weights, found.none) == ("base", None, {}, 1.0)


def test_an_unknown_expert_is_refused_with_those_there_are(pool: Pool) -> None:
    with pytest.raises(PoolError, match=r"no expert 'sql'.*letters, digits"):
        pool.generate("abcdef", expert="sql")


def test_a_seed_draws_the_same_again_and_leaves_torch_s_own_draws_alone(pool: Pool) -> None:
    options = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 10}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = pool.generate("abcdef", seed=1, **options)
    assert torch.equal(torch.rand(3), expected)
    assert pool.generate("abcdef", seed=1, **options) == first
    others = {pool.generate("abcdef", seed=seed, **options).text for seed in range(2, 6)}
    assert others != {first.text}


def test_an_answer_ends_before_a_text_that_stops_it(pool: Pool) -> None:
    whole = pool.generate("abcdef", max_new_tokens=20).text
    assert len(whole) > 6
    ending = whole[3:5]
    cut = pool.generate("abcdef", max_new_tokens=20, stop=(ending,)).text
    assert cut == whole[: whole.index(ending)]


def test_an_answer_that_a_text_stops_counts_no_padding_of_its_batch(pool: Pool) -> None:
    options = {
        "max_new_tokens": 20,
        "stop": (pool.generate("abcdef", max_new_tokens=20).text[3:5],),
    }
    together = pool.generate(PROMPTS, **options)
    assert [a.tokens for a in together] == [pool.generate(p, **options).tokens for p in PROMPTS]
    assert len({a.tokens for a in together}) > 1


def test_more_prompts_than_memory_holds_are_mapped_from_the_pool(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = partial(TrunkCache, memory_bytes=100)
    expected = prompt_features(pool.live, PROMPTS)
    monkeypatch.setattr(answering, "TrunkCache", few)
    torch.testing.assert_close(prompt_features(pool.live, PROMPTS), expected)


def test_a_prompt_without_room_for_an_answer_is_refused(pool: Pool) -> None:
    with pytest.raises(DataError, match=f"{MAX_POSITIONS}.*no room for an answer"):
        pool.generate("a" * MAX_POSITIONS)


def test_an_answer_that_the_context_cuts_short_shortens_no_other(pool: Pool) -> None:
    long = "a" * (MAX_POSITIONS - 10)
    both = pool.generate([long, "abcdef"], max_new_tokens=30)
    assert both[0].tokens <= 9
    assert both[1] == pool.generate("abcdef", max_new_tokens=30)


def test_a_conversation_is_answered_and_an_empty_one_refused(pool: Pool) -> None:
    assert pool.chat([Turn("user", "abcdef")], max_new_tokens=4) == pool.generate(
        "abcdef", max_new_tokens=4
    )
    with pytest.raises(DataError, match="no prompt"):
        pool.chat([])


def test_no_prompts_have_no_answers(pool: Pool) -> None:
    assert answer(pool.live, []) == []


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}]
)
def test_sampling_out_of_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Sampling(**options)  # type: ignore[arg-type]


def test_a_prompt_has_the_features_that_its_row_was_learned_with(pool: Pool) -> None:
    examples = rows(LETTERS, 4, 3)
    alone = prompt_features(pool.live, [example.prompt for example in examples])
    torch.testing.assert_close(alone, pool.live.encode(examples).features, atol=1e-4, rtol=0)
