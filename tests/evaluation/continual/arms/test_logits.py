"""Distributions that are mixed are what a sum of probabilities is, and one expert stays itself."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from dylora_moe.build.pool import Pool
from dylora_moe.evaluation.continual.answers import Questions, answer_rows, questions
from dylora_moe.evaluation.continual.arms import logits
from dylora_moe.evaluation.continual.arms.logits import (
    OursByLogits,
    answer_mixed,
    mixed_rows,
    mixture_losses,
    mixture_texts,
)
from dylora_moe.evaluation.continual.arms.ours import Ours
from dylora_moe.evaluation.continual.streams import STREAMS
from dylora_moe.experts.gates import Gates
from dylora_moe.experts.manager import ExpertManager
from dylora_moe.foundation.base import load_base
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.text.template import PLAIN
from dylora_moe.training.measure import answer_losses
from tests.evaluation.continual.arms.tiny_setting import setting, skills
from tests.models import EOS, tiny_base
from tests.pool_fixtures import _no_waiting, base_folder
from tests.pools import DIGITS, LETTERS, rows

__all__ = ["_no_waiting", "base_folder"]

WEIGHTS = torch.tensor([[0.7, 0.3, 0.0], [0.2, 0.3, 0.5], [0.0, 1.0, 0.0], [0.4, 0.0, 0.6]])


@pytest.fixture(scope="module")
def model() -> DyLoRAMoE:
    base = tiny_base()
    manager = ExpertManager(base.model, base.anatomy)
    for number in (1, 2, 3):
        manager.create_expert(f"expert_{number}", rank=2)
        with torch.no_grad():
            for key, parameter in manager.parameters_of(f"expert_{number}").items():
                if "lora_B" in key:
                    parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(number))
    return DyLoRAMoE(base, DynamicHybridRouter(base.anatomy.d_features), manager)


@pytest.fixture(scope="module")
def asked(model: DyLoRAMoE) -> Questions:
    found = [("a", row) for row in rows(LETTERS, 2, 0)] + [("b", row) for row in rows(DIGITS, 2, 1)]
    return questions(model.base, PLAIN, found)


def gates(model: DyLoRAMoE, weights: torch.Tensor = WEIGHTS) -> Gates:
    return Gates(model.experts.names, weights)


@torch.no_grad()
def by_hand(model: DyLoRAMoE, ids: list[int], weights: list[float]) -> torch.Tensor:
    """Mixed probabilities of the next token at each place."""
    tokens, total = torch.tensor([ids]), torch.zeros(())
    for name, weight in zip(model.experts.names, weights, strict=True):
        total = total + weight * model(input_ids=tokens, expert=name).logits[0].softmax(-1)
    return total


def test_rows_of_several_experts_are_found(model: DyLoRAMoE) -> None:
    assert mixed_rows(gates(model)) == [0, 1, 3]


def test_the_loss_is_that_of_the_mixed_probabilities(model: DyLoRAMoE, asked: Questions) -> None:
    found = mixture_losses(model, asked.rows, gates(model), [3, 0, 1])
    for loss, place in zip(found, (3, 0, 1), strict=True):
        row = asked.rows.encoded[place]
        mixed = by_hand(model, list(row.input_ids), WEIGHTS[place].tolist())
        expected = -sum(
            float(mixed[at - 1, token].log())
            for at, (token, trained) in enumerate(zip(row.input_ids, row.trained, strict=True))
            if trained
        )
        assert loss == pytest.approx(expected, abs=1e-3)


def test_every_token_is_the_likeliest_under_the_mixture(model: DyLoRAMoE, asked: Questions) -> None:
    texts = mixture_texts(model, asked.rows, gates(model), [0, 1, 3])
    for text, place in zip(texts, (0, 1, 3), strict=True):
        row = asked.rows.encoded[place]
        ids, prompt = list(row.input_ids[: row.prompt_length]), row.prompt_length
        for _ in range(logits.answer_limit(asked.rows.targets[place])):
            ids.append(int(by_hand(model, ids, WEIGHTS[place].tolist())[-1].argmax()))
            if ids[-1] == EOS:
                break
        decoded = model.base.tokenizer.decode(ids[prompt:], skip_special_tokens=True)
        assert text == decoded
        assert text


def test_an_expert_beside_a_copy_of_itself_is_itself(model: DyLoRAMoE, asked: Questions) -> None:
    """The mixture of a distribution with itself, in other batches."""
    one = torch.tensor([[1.0, 0.0, 0.0]]).expand(4, 3)
    expected = answer_losses(model, asked.rows, gates=gates(model, one)).total.tolist()
    found = mixture_losses(model, asked.rows, gates(model, one), range(4))
    assert found == pytest.approx(expected, abs=1e-4)


def test_many_rows_run_in_several_batches(
    model: DyLoRAMoE, asked: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = mixture_losses(model, asked.rows, gates(model), [0, 1, 3])
    texts = mixture_texts(model, asked.rows, gates(model), [0, 1, 3])
    monkeypatch.setattr(logits, "_COPIES", 3)
    assert mixture_losses(model, asked.rows, gates(model), [0, 1, 3]) == pytest.approx(whole)
    assert mixture_texts(model, asked.rows, gates(model), [0, 1, 3]) == texts


def test_answers_are_scored_and_noted_as_every_arm_s(model: DyLoRAMoE, asked: Questions) -> None:
    found = answer_mixed(model, asked, gates(model), [("a", 0.7), ("b", 0.5), ("", 0.6)])
    plain = answer_rows(model, asked, gates(model), only=[0, 1, 3])
    assert [(row.skill, row.key, row.tokens) for row in found] == [
        (row.skill, row.key, row.tokens) for row in plain
    ]
    assert [row.expert for row in found] == ["a", "b", ""]
    assert all(row.loss > 0 for row in found)
    assert any(abs(a.loss - b.loss) > 1e-3 for a, b in zip(found, plain, strict=True))


def test_the_arm_answers_as_ours_but_for_rows_of_several_experts(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = skills(2, train=64)
    stream = STREAMS["hard"](of, rows=64, batch=32, seed=0)
    load = partial(load_base, str(base_folder), device="cpu", dtype="fp32")
    given = setting(
        tmp_path / "first", skills=of, stream=stream, base=load, base_name=str(base_folder),
        device="cpu", dtype="fp32", own_prompts=32,
    )  # fmt: skip
    plain = Ours().run(given).last
    again = replace(given, folder=tmp_path / "again", ours_folder=given.folder)
    again.folder.mkdir()
    monkeypatch.setattr(Pool, "learn_arrivals", None)
    # As if no weight counted but a whole one: no row is of several experts.
    monkeypatch.setattr(logits, "_COUNTS", 1.0)
    found = OursByLogits().run(again)
    assert (found.arm, found.stages) == ("ours-logits", (plain,))
    assert found.details["rows_of_several_experts"] == 0
    assert found.base_loss is not None
    # As if next to nothing counted: every row is.
    monkeypatch.setattr(logits, "_COUNTS", 0.0)
    mixed = OursByLogits().run(again)
    assert mixed.details["rows_of_several_experts"] == len(plain.rows)
    same = ("skill", "key", "tokens", "expert", "confidence")
    for row, other in zip(mixed.last.rows, plain.rows, strict=True):
        assert all(getattr(row, name) == getattr(other, name) for name in same)
    assert mixed.base_loss is not None
