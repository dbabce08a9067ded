"""As many experts as the pool grew, and nobody who tells it the skills."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dylora_moe.errors import ConfigError
from dylora_moe.evaluation.continual.arms.arm import Setting
from dylora_moe.evaluation.continual.arms.banked import own_features
from dylora_moe.evaluation.continual.arms.fixed import FixedRouter, experts_of, groups_of
from dylora_moe.evaluation.continual.arms.lora_learner import LoraLearner
from dylora_moe.evaluation.continual.streams import STREAMS, Stream, Truth
from dylora_moe.foundation.base import load_base
from dylora_moe.records import Example
from tests.evaluation.continual.arms.tiny_setting import setting, skills
from tests.pool_fixtures import _no_waiting, base_folder

__all__ = ["_no_waiting", "base_folder"]

SKILLS = skills(3, train=32)


def given(folder: Path, base: Path, **changes: Any) -> Setting:
    stream = STREAMS["hard"](SKILLS, rows=32, batch=16, seed=0)
    values: dict[str, Any] = {
        "skills": SKILLS, "stream": stream, "base_name": str(base), "device": "cpu",
        "base": partial(load_base, str(base), device="cpu", dtype="fp32"), "dtype": "fp32",
        "own_prompts": 32, "ours_experts": 3,
    }  # fmt: skip
    return setting(folder, **(values | changes))


def grouped(of: Setting, count: int) -> Mapping[str, tuple[Example, ...]]:
    return groups_of(of, LoraLearner(of), own_features(of), count)


def test_it_has_as_many_experts_as_the_pool_grew_whatever_the_true_number(
    base_folder: Path, tmp_path: Path
) -> None:
    for count in (2, 4):
        found = FixedRouter().run(given(tmp_path, base_folder, ours_experts=count))
        assert len(found.details["adapters"]) == found.details["experts_grown"] == count
        assert len(set(found.details["adapters"].values())) == count
    assert found.stages[-1].after == 3


def test_rows_are_grouped_by_what_they_are_like_and_each_is_in_one_group(
    base_folder: Path, tmp_path: Path
) -> None:
    of = given(tmp_path, base_folder)
    found = grouped(of, 3)
    truth = of.stream.truth.skill_of
    most = [Counter(truth[row.key] for row in rows).most_common(1)[0] for rows in found.values()]
    assert {skill for skill, _ in most} == {"letters", "digits", "signs"}
    assert sum(count for _, count in most) >= 0.9 * len(of.stream.truth.keys)
    every = sorted(row.key for rows in found.values() for row in rows)
    assert every == sorted(of.stream.truth.keys)


def test_the_truth_has_no_part_in_what_it_learns(base_folder: Path, tmp_path: Path) -> None:
    of = given(tmp_path, base_folder)
    lied = tuple(reversed(of.stream.truth.skills))
    told = Stream(of.stream.kind, of.stream.batches, replace(of.stream.truth, skills=lied))
    assert isinstance(told.truth, Truth)
    assert grouped(of, 3) == grouped(replace(of, stream=told), 3)


def test_a_group_is_for_the_skill_of_most_of_its_rows_and_rows_go_by_the_router(
    base_folder: Path, tmp_path: Path
) -> None:
    found = FixedRouter().run(given(tmp_path, base_folder))
    assert sorted(found.details["owners"].values()) == ["digits", "letters", "signs"]
    right = [row.expert == row.skill for row in found.last.rows]
    assert sum(right) >= 10
    assert all(0 < (row.confidence or 0) <= 1 for row in found.last.rows)
    assert found.base_loss is not None
    assert len(found.neutral) == 3


def test_it_takes_as_many_tokens_as_the_pool(base_folder: Path, tmp_path: Path) -> None:
    once = FixedRouter().run(given(tmp_path / "once", base_folder, epochs=1.0)).trained_tokens
    more = given(tmp_path / "more", base_folder, epochs=1.0, ours_tokens=2 * once)
    assert abs(FixedRouter().run(more).trained_tokens - 2 * once) <= 3 * 4 * 20


def test_without_a_number_it_does_not_run(base_folder: Path, tmp_path: Path) -> None:
    unknown = given(tmp_path, base_folder, ours_experts=None)
    with pytest.raises(ConfigError, match="run the arm ours before"):
        FixedRouter().run(unknown)
    # A pool that grew none is of one expert at least.
    assert experts_of(replace(unknown, ours_experts=0)) == 1


def test_the_seed_decides_the_groups(base_folder: Path, tmp_path: Path) -> None:
    of = given(tmp_path, base_folder)
    assert grouped(of, 5) == grouped(of, 5)
    assert torch.isfinite(own_features(of)).all()
