"""Answers are scored as the pool scores itself, whoever gives them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from dylora_moe.build.pool import Pool
from dylora_moe.errors import DataError
from dylora_moe.evaluation.continual import answers
from dylora_moe.evaluation.continual.answers import (
    Questions,
    answer_rows,
    decisions,
    pinned,
    questions,
)
from dylora_moe.experts.gates import Gates
from dylora_moe.experts.manager import ExpertManager
from dylora_moe.lifecycle.answering import Sampling, answer
from dylora_moe.lifecycle.evaluating import evaluate
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.records import BASE_NAME, Example, Turn, pair
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.text.template import PLAIN
from dylora_moe.training.measure import answer_losses, row_routing
from tests.models import tiny, tiny_base
from tests.pool_fixtures import _no_waiting, base_folder, empty_folder
from tests.pools import DIGITS, LETTERS, constant, copied, learn, rows, settings

__all__ = ["_no_waiting", "base_folder", "empty_folder"]


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def pool(empty_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Right about letters, whose answer is always the same, and not about digits."""
    pool = copied(empty_folder, tmp_path_factory.mktemp("answers") / "pool")
    easy = settings(consolidation={"epochs": 8})
    learn(pool, "letters", rows(LETTERS, 64, 3, constant), settings=easy)
    learn(pool, "digits", rows(DIGITS, 64, 4))
    return pool


@pytest.fixture(scope="module")
def asked(pool: Pool) -> Questions:
    letters, digits = rows(LETTERS, 6, 50, constant), rows(DIGITS, 6, 51)
    of = [("letters", row) for row in letters] + [("digits", row) for row in digits]
    return questions(pool.live.base, pool.live.fmt, of)


def test_the_scores_are_those_of_the_pool_s_own_evaluation(pool: Pool, asked: Questions) -> None:
    live = pool.live
    found = answer_rows(live.model, asked, row_routing(live.model, asked.rows))
    own = evaluate(live, asked.examples)
    loss = sum(row.loss for row in found) / sum(row.tokens for row in found)
    assert loss == pytest.approx(own.loss, abs=1e-5)
    assert sum(row.score for row in found) / len(found) == own.accuracy
    assert [(row.skill, row.key) for row in found] == [
        (skill, row.key) for skill, row in zip(asked.skills, asked.examples, strict=True)
    ]
    assert 0 < own.accuracy < 1


def test_every_row_is_answered_as_it_is_alone_by_its_own_expert(
    pool: Pool, asked: Questions
) -> None:
    live = pool.live
    names = [*live.experts.names, BASE_NAME]
    experts = [names[place % len(names)] for place in range(len(asked))]
    found = answer_rows(live.model, asked, pinned(experts))
    for place, (expert, row) in enumerate(zip(experts, found, strict=True)):
        example = asked.examples[place]
        (said,) = answer(
            live, [example.turns[:-1]], expert=expert, sampling=Sampling(max_new_tokens=16)
        )
        assert row.exact == float(said.text.strip() == example.completion.strip())
        alone = answer_losses(live.model, asked.rows, expert=expert, only=[place])
        assert row.loss == pytest.approx(float(alone.total), abs=1e-4)
        assert row.tokens == int(alone.tokens)
    assert {row.exact for row in found} == {0.0, 1.0}


def test_rows_of_different_experts_share_the_passes(
    pool: Pool, asked: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward = DyLoRAMoE.forward

    def noted(self: DyLoRAMoE, *args: Any, **kwargs: Any) -> Any:
        seen.append(int((kwargs["gates"].weights.sum(0) > 0).sum()))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(DyLoRAMoE, "forward", noted)
    names = pool.live.experts.names
    answer_rows(pool.live.model, asked, pinned([names[i % 2] for i in range(len(asked))]))
    assert seen[0] == 2
    assert len(seen) < 4


def test_a_row_that_is_right_costs_no_generation(
    pool: Pool, asked: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    routing = row_routing(pool.live.model, asked.rows)
    found = answer_rows(pool.live.model, asked, routing)
    right = [place for place, row in enumerate(found) if row.exact]
    assert right
    monkeypatch.setattr("dylora_moe.lifecycle.completing.generate_batch", None)
    again = answer_rows(pool.live.model, asked, routing, only=right)
    assert again == tuple(found[place] for place in right)


def test_scores_are_the_same_where_only_they_are_asked_for_and_rows_settled_are_not_written(
    pool: Pool, asked: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pool.live.model
    gates = pinned([BASE_NAME, pool.live.experts.names[0]] * (len(asked) // 2))
    written: list[int] = []
    finish = answers.complete

    def noted(model: Any, begun: Any, **given: Any) -> Any:
        written.append(len(begun))
        return finish(model, begun, **given)

    monkeypatch.setattr(answers, "complete", noted)
    whole = answer_rows(model, asked, gates)
    scored = answer_rows(model, asked, gates, whole=False)
    assert [replace(row, f1=None) for row in whole] == [replace(row, f1=None) for row in scored]
    assert written[0] == len(asked)
    assert 0 < written[1] < len(asked)
    settled = [row for row in scored if row.f1 is None]
    assert len(settled) == len(asked) - written[1]
    assert {(row.score, row.exact) for row in settled} == {(0.0, 0.0)}
    again = {row.key: row for row in whole}
    assert all(row == again[row.key] for row in scored if row.f1 is not None)


@pytest.mark.parametrize(
    ("check", "completion"), [("f1", "a b"), ("number", "12"), ("json", '{"a": 1}')]
)
def test_a_row_whose_check_looks_at_the_whole_answer_is_written_unless_it_is_no_json(
    pool: Pool, check: str, completion: str
) -> None:
    rows_ = [("any", pair(row.prompt, completion, check)) for row in rows(DIGITS, 6, 52)]  # type: ignore[arg-type]
    of = questions(pool.live.base, pool.live.fmt, rows_)
    gates = pinned([BASE_NAME] * 6)
    scored = answer_rows(pool.live.model, of, gates, whole=False)
    assert all(row.f1 is not None for row in scored) or check == "json"
    whole = answer_rows(pool.live.model, of, gates)
    assert [(row.score, row.exact) for row in scored] == [(row.score, row.exact) for row in whole]


def test_only_some_rows_come_back_in_the_order_they_were_asked_for(
    pool: Pool, asked: Questions
) -> None:
    gates = pinned([BASE_NAME] * len(asked))
    found = answer_rows(pool.live.model, asked, gates, only=[7, 2], decided=[("", 0.5), ("a", 1.0)])
    assert [row.key for row in found] == [asked.examples[7].key, asked.examples[2].key]
    assert [(row.expert, row.confidence) for row in found] == [("", 0.5), ("a", 1.0)]
    assert answer_rows(pool.live.model, asked, gates, only=[]) == ()


def test_a_routing_names_the_true_skill_of_the_largest_weight(pool: Pool, asked: Questions) -> None:
    live = pool.live
    routing = row_routing(live.model, asked.rows)
    owners = {version.expert_id: version.alias for version in live.revision.experts}
    found = decisions(routing, owners)
    assert [name for name, _ in found].count("letters") >= 5
    for row, (name, share) in enumerate(found):
        if name:
            best = int(routing.weights[row].argmax())
            assert owners[routing.experts[best]] == name
            assert share == pytest.approx(float(routing.probabilities[row, best]))
        else:
            assert share == pytest.approx(float(routing.none[row]))


def test_a_row_without_a_prompt_is_refused(pool: Pool) -> None:
    plain = Example((Turn("assistant", "once upon a time"),))
    with pytest.raises(DataError, match="no prompt to answer"):
        questions(pool.live.base, PLAIN, [("tales", plain)])


def test_all_of_several_adapters_at_weight_one_are_their_sum(tmp_path: Path) -> None:
    base = tiny_base()
    manager = ExpertManager(base.model, base.anatomy)
    for number, rank in enumerate((2, 3), 1):
        manager.create_expert(f"expert_{number}", rank=rank, alpha=4.0)
        with torch.no_grad():
            for key, parameter in manager.parameters_of(f"expert_{number}").items():
                if "lora_B" in key:
                    parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(number))
        manager.save(f"expert_{number}", tmp_path / str(number))
    model = DyLoRAMoE(base, DynamicHybridRouter(base.anatomy.d_features), manager)
    peft = PeftModel.from_pretrained(tiny(), tmp_path / "1", adapter_name="one")
    peft.load_adapter(tmp_path / "2", adapter_name="two")
    peft.add_weighted_adapter(["one", "two"], [1.0, 1.0], "both", combination_type="cat")
    peft.set_adapter("both")
    ids = torch.randint(5, 100, (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = peft(input_ids=ids).logits
        gates = Gates.all_of(manager.names, 3)
        found = model(input_ids=ids, gates=gates).logits
        alone = model(input_ids=ids, expert="expert_1").logits
        nobody = model(input_ids=ids, gates=Gates.all_of((), 3)).logits
        stock = model(input_ids=ids, expert=BASE_NAME).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, alone, atol=1e-2)
    assert torch.equal(nobody, stock)


def test_answers_under_a_sum_are_greedy_under_the_sum(pool: Pool, asked: Questions) -> None:
    """Losses and texts go by the same weights."""
    live = pool.live
    names = live.experts.names
    gates = Gates.all_of(names, len(asked))
    found = answer_rows(live.model, asked, gates)
    losses = answer_losses(live.model, asked.rows, gates=Gates(names, torch.ones(len(asked), 2)))
    assert [row.loss for row in found] == pytest.approx(losses.total.tolist(), abs=1e-4)
