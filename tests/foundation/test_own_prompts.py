from __future__ import annotations

import pytest
import torch

from dylora_moe.errors import BaseModelError
from dylora_moe.foundation.own_prompts import write_own_prompts
from tests.models import tiny_base


def test_the_same_seed_writes_the_same_texts_and_another_one_others() -> None:
    base = tiny_base()
    first = write_own_prompts(base, 9, seed=1, max_tokens=8)
    assert len(first) == 9
    assert all(text.strip() == text and text for text in first)
    assert write_own_prompts(base, 9, seed=1, max_tokens=8) == first
    assert write_own_prompts(base, 9, seed=2, max_tokens=8) != first


def test_torchs_own_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    write_own_prompts(tiny_base(), 4, max_tokens=4)
    assert torch.equal(torch.rand(3), expected)


def test_half_of_the_texts_follow_the_opening_of_a_users_turn() -> None:
    base = tiny_base()
    seen: list[tuple[int, ...]] = []
    generate = base.model.generate

    def listen(*args: object, **kwargs: torch.Tensor) -> object:
        seen.extend(tuple(row) for row in kwargs["input_ids"].tolist())
        return generate(*args, **kwargs)

    base.model.generate = listen
    write_own_prompts(base, 8, max_tokens=4)
    starts = set(seen)
    assert (base.tokenizer.bos_token_id,) in starts
    assert any(len(start) > 1 for start in starts)


def test_a_base_that_writes_nothing_is_refused_instead_of_asked_for_ever() -> None:
    base = tiny_base()
    base.model.generate = lambda input_ids, **_: torch.full(
        (len(input_ids), input_ids.shape[1] + 1), base.tokenizer.eos_token_id
    )
    with pytest.raises(BaseModelError, match="0 of 4 texts"):
        write_own_prompts(base, 4)
