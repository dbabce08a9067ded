"""Answers are finished in batches, none past its own limit or the context."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dylora_moe.build.pool import Pool
from dylora_moe.lifecycle import completing
from dylora_moe.lifecycle.answering import BATCH_ROWS, Sampling, answer
from dylora_moe.lifecycle.completing import Begun, complete
from dylora_moe.text.template import encode_prompt
from tests.models import EOS, MAX_POSITIONS
from tests.pools import PROMPTS


@pytest.fixture(scope="module")
def pool(taught_folder: Path) -> Pool:
    """Read only, so that it need not be copied."""
    return Pool.open(taught_folder, device="cpu", dtype="fp32")


def test_no_row_of_a_batch_gets_past_the_context_and_every_row_is_in_one() -> None:
    lengths = [5, 90, 40, 60, 10, 20] * 20
    left = [90, 5, 30, 40, 0, 64] * 20
    batches = list(completing._batches(lengths, left, context=100))
    for rows in batches:
        assert max(lengths[i] for i in rows) + max(left[i] for i in rows) <= 100
        assert len(rows) <= BATCH_ROWS
    written = [row for rows in batches for row in rows]
    assert sorted(written) == [row for row in range(len(left)) if left[row]]
    assert max(map(len, batches)) > 1


def test_an_answer_that_fills_the_context_ends_there_and_the_others_do_not(pool: Pool) -> None:
    tokenizer = pool.live.base.tokenizer
    prompts = ["a" * (MAX_POSITIONS - 6), *PROMPTS]
    begun = [Begun(encode_prompt(prompt, tokenizer), (), 12) for prompt in prompts]
    expected = [
        answer(pool.live, [prompt], sampling=Sampling(max_new_tokens=12))[0].text
        for prompt in prompts
    ]
    assert complete(pool.live.model, begun) == expected
    assert 0 < len(expected[0]) <= 5


def test_what_is_known_beyond_a_limit_or_a_stop_token_is_cut_off(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completing, "generate_batch", None)
    known = pool.live.base.tokenizer("abcdef")["input_ids"]
    prompt = encode_prompt("abc", pool.live.base.tokenizer)
    begun = [Begun(prompt, known, 4), Begun(prompt, [*known[:2], EOS, *known], 20)]
    assert complete(pool.live.model, begun) == ["abcd", "ab"]


def test_nothing_to_finish_is_nothing(pool: Pool) -> None:
    assert complete(pool.live.model, []) == []


def test_each_row_of_a_batch_ends_after_its_own_number_of_tokens() -> None:
    ends = completing._OwnEnds([1, 3])
    ids = torch.zeros(2, 9)
    assert [ends(ids, None).tolist() for _ in range(3)] == [
        [True, False],
        [True, False],
        [True] * 2,
    ]
