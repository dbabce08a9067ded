"""Answers are scored as if they had been generated whole, and only what is not known is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from dylora_moe.build.pool import Pool
from dylora_moe.lifecycle import answering, scoring_pass
from dylora_moe.lifecycle.answering import Sampling, answer, route
from dylora_moe.lifecycle.completing import answer_limit
from dylora_moe.lifecycle.live import LivePool, LiveSkill
from dylora_moe.lifecycle.scorecard import RowScore, Scorecard, SkillCard
from dylora_moe.lifecycle.scoring_pass import score_pool
from dylora_moe.model.generation import Generation, writes_the_largest
from dylora_moe.records import Check, Example, Turn, pair
from dylora_moe.scoring.checks import score
from dylora_moe.text.template import encode_prompt
from dylora_moe.training.measure import answer_losses
from tests.pools import DIGITS, LETTERS, learn, rows, settings

LONGEST = 24
"""Characters of the longest completion here: its limit is 64, those of the short ones 16."""


@pytest.fixture(scope="module")
def pool(taught_folder: Any) -> Pool:
    """Read only, so that it need not be copied."""
    return Pool.open(taught_folder, device="cpu", dtype="fp32")


@dataclass
class Spy:
    """What scoring says, and every generation it asks for."""

    texts: list[str] = field(default_factory=list)
    inputs: list[list[int]] = field(default_factory=list)
    weights: list[list[float]] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    spy, generate = Spy(), answering.generate

    def scored(check: str, said: str, *_: Any) -> float:
        spy.texts.append(said)
        return float(len(spy.texts) - 1)

    def generated(model: Any, ids: Tensor, mask: Tensor, **options: Any) -> Generation:
        pairs = zip(ids, mask.bool(), strict=True)
        spy.inputs += [row[there].tolist() for row, there in pairs]
        spy.batches.append(len(ids))
        if options.get("gates") is not None:
            spy.weights += options["gates"].weights.tolist()
        return generate(model, ids, mask, **options)

    monkeypatch.setattr(scoring_pass, "score", scored)
    monkeypatch.setattr(answering, "generate", generated)
    return spy


def texts(
    live: LivePool,
    examples: Sequence[Example],
    spy: Spy,
    monkeypatch: pytest.MonkeyPatch,
    before: Mapping[str, SkillCard] = {},
) -> list[str | None]:
    """What scoring a skill of these validation rows takes for their answers."""
    found = scores(live, examples, monkeypatch, before)
    return [None if one is None else spy.texts[int(one)] for one in found]


def scores(
    live: LivePool,
    examples: Sequence[Example],
    monkeypatch: pytest.MonkeyPatch,
    before: Mapping[str, SkillCard] = {},
) -> list[float | None]:
    """The scores of a skill of these validation rows."""
    skill = LiveSkill("s", "s", "expert_1", tuple(examples), live.encode(examples))
    monkeypatch.setattr(live, "skills", {"s": skill})
    card = score_pool(live, Scorecard(before), generate=len(examples)).card.skills["s"]
    return [row.score for row in card.rows]


def whole(live: LivePool, example: Example) -> str:
    """The answer generated alone, from the prompt on, up to the row's own limit."""
    (targets,) = live.encode([example]).targets
    limit = Sampling(max_new_tokens=answer_limit(targets))
    return answer(live, [example.turns[:-1]], sampling=limit)[0].text


def own(pool: Pool, prompt: str) -> str:
    return pool.generate(prompt, max_new_tokens=LONGEST).text


def prompts() -> list[str]:
    return [row.prompt for row in (*rows(LETTERS, 30, 99), *rows(DIGITS, 20, 99))]


KINDS: Mapping[str, Callable[[str], str]] = {
    "right": lambda text: text,
    "wrong at the first token": lambda text: "Z" + text[1:],
    "wrong in the middle": lambda text: text[:1] + "Z" + text[2:],
    "right as far as it goes": lambda text: text[: len(text) // 2],
    "longer than what is written": lambda text: text + "Zz",
}


def drafted(pool: Pool, check: Check = "f1") -> dict[str, list[Example]]:
    """Rows whose completions go together with what the pool writes in each of these ways."""
    said = pool.generate(prompts(), max_new_tokens=LONGEST)
    written = {prompt: one.text for prompt, one in zip(prompts(), said, strict=True) if one.text}
    lengths = {len(text) for text in written.values()}
    assert min(lengths) < 8
    assert max(lengths) == LONGEST
    return {
        kind: [pair(prompt, made(text), check) for prompt, text in written.items()]
        for kind, made in KINDS.items()
    }


def test_an_answer_is_the_one_generated_whole_and_alone(
    pool: Pool, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [row for kind in drafted(pool).values() for row in kind[::2] if row.completion]
    expected = [whole(pool.live, example) for example in asked]
    limits = {answer_limit(len(example.completion) + 1) for example in asked}
    assert len(limits) > 2
    spy.batches.clear()
    assert texts(pool.live, asked, spy, monkeypatch) == expected
    assert max(spy.batches) == answering.BATCH_ROWS
    # Limits do not part batches: all are full but the last.
    assert all(size == answering.BATCH_ROWS for size in spy.batches[:-1])


def test_only_the_last_answer_of_a_conversation_counts(
    pool: Pool, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    for prompt in prompts()[:8]:
        turns = (Turn("user", prompt), Turn("assistant", prompt[:3]), Turn("user", prompt))
        (said,) = answer(pool.live, [turns], sampling=Sampling(max_new_tokens=LONGEST))
        asked += [
            Example((*turns, Turn("assistant", completion)), "f1")
            for completion in {said.text, "Z" + said.text, said.text[:1] + "Z"} - {""}
        ]
    expected = [whole(pool.live, example) for example in asked]
    assert texts(pool.live, asked, spy, monkeypatch) == expected


def test_a_row_that_is_right_to_its_end_is_not_generated(
    pool: Pool, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A completion ends with a stop token: those that the pool ends too are right to their end.
    ended = [row for row in drafted(pool)["right"] if len(row.completion) < LONGEST]
    early = drafted(pool)["longer than what is written"]
    early = [row for row in early if len(row.completion) < LONGEST]
    assert len(ended) > 3
    spy.inputs.clear()
    found = texts(pool.live, [*ended, *early], spy, monkeypatch)
    assert found == [row.completion for row in ended] + [row.completion[:-2] for row in early]
    assert not spy.inputs


def test_a_wrong_row_that_has_to_be_exact_scores_as_if_generated_and_is_not(
    pool: Pool, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring_pass, "score", score)
    kinds = drafted(pool, "exact")
    kinds = {kind: found[::2] for kind, found in kinds.items()}
    asked = [row for kind in kinds.values() for row in kind if row.completion]
    expected = [score("exact", whole(pool.live, row), row.completion) for row in asked]
    spy.inputs.clear()
    assert scores(pool.live, asked, monkeypatch) == expected
    assert set(expected) == {0.0, 1.0}
    # Only what is right so far, and not at its end, is gone on with.
    ended = {row.prompt for row in kinds["right"] if len(row.completion) < LONGEST}
    wrong = {row.key for kind in list(kinds)[1:3] for row in kinds[kind]}
    assert len(wrong) > 4
    assert len(spy.inputs) <= sum(row.key not in wrong and row.prompt not in ended for row in asked)


def test_what_is_known_is_not_generated_and_is_no_part_of_what_routes(
    pool: Pool, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [row for row in drafted(pool)["wrong in the middle"] if len(row.completion) > 8]
    tokenizer = pool.live.base.tokenizer
    begun = {
        # The first token, which is right, and the one that greedy decoding writes after it.
        (
            *encode_prompt(row.turns[:-1], tokenizer),
            *tokenizer(own(pool, row.prompt))["input_ids"][:2],
        ): row
        for row in asked
    }
    spy.inputs.clear()
    texts(pool.live, asked, spy, monkeypatch)
    assert {tuple(row) for row in spy.inputs} == set(begun)
    routing = route(pool.live, [begun[tuple(row)].prompt for row in spy.inputs])
    assert len(asked) > 3
    assert torch.allclose(torch.tensor(spy.weights), routing.weights, atol=1e-5)


def test_a_score_that_is_missing_on_an_earlier_card_is_made_up_for(
    pool: Pool, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [kind[0] for kind in drafted(pool).values()]
    expected: list[str | None] = [whole(pool.live, example) for example in asked]
    texts(pool.live, asked, spy, monkeypatch)
    card = score_pool(pool.live, Scorecard({}), generate=len(asked)).card.skills["s"]
    unscored = [RowScore(row.key, row.to, 7.0, row.tokens, None) for row in card.rows]
    before = {"s": SkillCard(card.name, card.expert, card.pinned_loss, tuple(unscored))}
    assert texts(pool.live, asked, spy, monkeypatch, before) == expected
    anew = score_pool(pool.live, Scorecard(before), generate=len(asked))
    # What did not move is not scored again but for its answer.
    assert anew.rescored == 0
    assert {row.total for row in anew.card.skills["s"].rows} == {7.0}


def test_a_base_that_writes_other_than_the_largest_is_generated_whole(
    pool: Pool, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = drafted(pool)["right"][::2]
    plain = [whole(pool.live, example) for example in asked]
    assert writes_the_largest(pool.live.model)
    monkeypatch.setattr(pool.live.base.model.generation_config, "repetition_penalty", 3.0)
    assert not writes_the_largest(pool.live.model)
    expected = [whole(pool.live, example) for example in asked]
    assert expected != plain
    assert texts(pool.live, asked, spy, monkeypatch) == expected


def test_routing_by_token_is_generated_whole(
    taught: Pool, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = settings(router={"granularity": "token"})
    learn(taught, "letters-b", rows(LETTERS, 32, 9), settings=changed, into="letters")
    asked = [example for kind in drafted(taught).values() for example in kind[:2]]
    asked = [example for example in asked if example.completion]
    expected = [whole(taught.live, example) for example in asked]
    spy.inputs.clear()
    assert texts(taught.live, asked, spy, monkeypatch) == expected
    assert sorted(spy.inputs) == sorted(
        encode_prompt(example.turns[:-1], taught.live.base.tokenizer) for example in asked
    )


def test_a_row_without_a_prompt_has_no_answer_to_score(
    pool: Pool, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [Example((Turn("assistant", "abcabcabcabcabcabcabc"),)), pair("abc", "a", "f1")]
    found = texts(pool.live, asked, spy, monkeypatch)
    assert found == [None, whole(pool.live, asked[1])]


def test_a_limit_leaves_room_behind_the_answer_up_to_the_longest() -> None:
    for targets in (1, 8, 9, 24, 25, 100, 248, 249, 5000):
        assert min(targets + 8, 256) <= answer_limit(targets) <= 256


def test_the_loss_of_the_own_expert_is_that_of_all_rows_on_it(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[str | None, int]] = []

    def noted(*args: Any, **options: Any) -> Any:
        found = answer_losses(*args, **options)
        passes.append((options.get("expert"), len(found.total)))
        return found

    monkeypatch.setattr(scoring_pass, "answer_losses", noted)
    cards = score_pool(pool.live, Scorecard({}), generate=0).card.skills
    alone = 0
    for skill_id, skill in pool.live.skills.items():
        assert skill.rows is not None
        whole = answer_losses(pool.live.model, skill.rows, expert=skill.expert_id)
        assert cards[skill_id].pinned_loss == pytest.approx(whole.mean, rel=1e-4)
        own = [row for row in cards[skill_id].rows if row.to == {cards[skill_id].expert: 1.0}]
        pinned = [count for expert, count in passes if expert == skill.expert_id]
        assert pinned == [len(skill.rows) - len(own)]
        alone += len(own)
    assert alone, "rows that nobody else takes part in are not measured twice"
