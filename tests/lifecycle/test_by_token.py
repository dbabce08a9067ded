"""A pool whose router decides for each token: it learns, answers, is stored and taken back."""

from __future__ import annotations

import pytest
import torch

from dylora_moe.build.pool import Pool
from dylora_moe.lifecycle.answering import Sampling, answer
from dylora_moe.text.batching import collate
from dylora_moe.training.measure import answer_losses, row_routing
from tests.pools import LETTERS, PROMPTS, learn, rows, settings


def by_token(pool: Pool) -> Pool:
    changed = settings(router={"granularity": "token"})
    result = learn(pool, "letters-b", rows(LETTERS, 32, 9), settings=changed, into="letters")
    assert result.action in ("new version", "statistics")
    return pool


def test_a_pool_is_told_once_and_keeps_it(taught: Pool) -> None:
    assert taught.live.router.granularity == "sequence"
    by_token(taught)
    assert taught.live.router.granularity == "token"
    learn(taught, "letters-c", rows(LETTERS, 32, 10), into="letters")
    assert taught.live.router.granularity == "token"
    with Pool.open(taught.path, device="cpu", dtype="fp32") as again:
        assert again.live.router.granularity == "token"
        assert again.generate(PROMPTS, max_new_tokens=8) == taught.generate(
            PROMPTS, max_new_tokens=8
        )
    for name in ("digits", "letters"):
        taught.remove(name)
        assert taught.live.router.granularity == "token"


def test_taking_the_step_back_takes_that_back_too(taught: Pool) -> None:
    before = taught.generate(PROMPTS, max_new_tokens=8)
    by_token(taught)
    taught.rollback()
    assert taught.live.router.granularity == "sequence"
    assert taught.generate(PROMPTS, max_new_tokens=8) == before


def test_prompts_of_a_batch_are_answered_and_streamed_as_each_alone(taught: Pool) -> None:
    by_token(taught)
    texts = [""] * len(PROMPTS)

    def hear(number: int, text: str) -> None:
        texts[number] += text

    sampling = Sampling(max_new_tokens=12)
    together = answer(taught.live, PROMPTS, sampling=sampling, on_text=hear)
    assert texts == [a.text for a in together]
    for prompt, found in zip(PROMPTS, together, strict=True):
        alone = taught.generate(prompt, max_new_tokens=12)
        assert (alone.text, alone.expert, alone.tokens) == (found.text, found.expert, found.tokens)
        assert alone.weights == pytest.approx(found.weights, abs=1e-5)
        assert sum(found.weights.values()) <= 1 + 1e-5


def test_rows_are_measured_as_a_whole_pass_would(taught: Pool) -> None:
    live = by_token(taught).live
    live.router.log_temperature.data.fill_(3.0)
    found = live.encode(rows(LETTERS, 6, 21))
    losses = answer_losses(live.model, found, batch_tokens=40)
    routing = row_routing(live.model, found, batch_tokens=40)
    for index, encoded in enumerate(found.encoded):
        batch = collate([encoded], 0)
        with torch.no_grad():
            whole = live.model(**batch)
        assert losses.per_row[index] == pytest.approx(float(whole.loss), abs=1e-4)
        weights = whole.routing.weights[0].mean(0)
        torch.testing.assert_close(routing.weights[index], weights, atol=1e-4, rtol=0)
    own = taught.evaluate(generate=False)
    assert set(own) == {"letters", "digits"}
