"""Experts and gate trained together on everything, for as many tokens as the pool took."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dylora_moe.errors import ConfigError
from dylora_moe.evaluation.continual.arms.arm import Setting
from dylora_moe.evaluation.continual.arms.joint import FixedJoint
from dylora_moe.evaluation.continual.arms.multi_task import BaseAlone
from dylora_moe.evaluation.continual.results import ArmResult, from_json, to_json
from dylora_moe.evaluation.continual.streams import STREAMS
from tests.evaluation.continual.arms.tiny_setting import setting, skills

OF = skills(2)


def given(folder: Path, **changes: Any) -> Setting:
    stream = STREAMS["hard"](OF, rows=24, batch=6)
    return setting(folder, skills=OF, stream=stream, **({"ours_experts": 3} | changes))


def loss(result: ArmResult) -> float:
    return sum(row.loss for row in result.last.rows)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> ArmResult:
    return FixedJoint().run(given(tmp_path_factory.mktemp("joint"), epochs=6.0))


def test_it_learns(learned: ArmResult, tmp_path: Path) -> None:
    assert loss(learned) < 0.8 * loss(BaseAlone().run(given(tmp_path)))


def test_every_row_is_answered_by_all_experts_and_notes_the_first(learned: ArmResult) -> None:
    assert learned.details["experts_grown"] == 3
    assert learned.parameters == learned.parameters_in_use > 0
    names = {"digits", "letters", "expert_1", "expert_2", "expert_3"}
    assert {row.expert for row in learned.last.rows} <= names
    assert set(learned.details["owners"].values()) <= {"digits", "letters"}
    assert all(1 / 3 <= (row.confidence or 0) <= 1 for row in learned.last.rows)
    assert (learned.last.after, learned.last.skill) == (2, "digits")
    assert len(learned.neutral) == 3
    assert from_json(to_json(learned, "x"))[0] == learned


@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_its_tokens_are_counted_as_the_pool_s_are(tmp_path: Path, factor: float) -> None:
    once = FixedJoint().run(given(tmp_path, epochs=1.0)).trained_tokens
    wanted = round(once * factor)
    found = FixedJoint().run(given(tmp_path, epochs=1.0, ours_tokens=wanted)).trained_tokens
    # An update is the least there is to add.
    assert abs(found - wanted) <= 4 * 20


def test_the_epoch_of_the_lowest_loss_is_kept(tmp_path: Path) -> None:
    # A rate that takes it apart again.
    of = given(tmp_path, epochs=3.0, learning_rate=3.0)
    found = FixedJoint().run(of)
    assert found.details["loss"] < 30
    assert all(row.loss >= 0 for row in found.last.rows)


def test_its_dropout_is_the_seed_s(tmp_path: Path) -> None:
    of = given(tmp_path, epochs=1.0)
    expert = of.learn.expert.model_copy(update={"dropout": 0.5})
    of = replace(of, learn=of.learn.model_copy(update={"expert": expert}))
    found = []
    for other in (1, 2):
        torch.manual_seed(other)  # what was drawn before is nothing of its own
        found.append(FixedJoint().run(of).last.rows)
    assert found[0] == found[1]


def test_without_a_number_of_experts_it_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run the arm ours before"):
        FixedJoint().run(given(tmp_path, ours_experts=None))
