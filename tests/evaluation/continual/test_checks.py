"""The bench says of itself when it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from dylora_moe.evaluation.continual.checks import Check, checks
from dylora_moe.evaluation.continual.document import document, to_markdown
from dylora_moe.evaluation.continual.presets import PRESETS
from dylora_moe.evaluation.continual.results import ArmResult
from tests.evaluation.continual.made_results import SKILLS, at_once
from tests.evaluation.continual.test_goals import PERFECT, ours


def made(results: Sequence[ArmResult]) -> list[Check]:
    return list(checks({(one.stream, one.arm): [one] for one in results}))


def bank(arm: str, right: int) -> ArmResult:
    return at_once({skill: [1.0] * right + [0.0] * (10 - right) for skill in SKILLS}, arm=arm)


def test_shuffled_ids_may_have_half_of_what_the_oracle_has_and_no_more() -> None:
    (half,) = made([bank("oracle-bank", 8), bank("shuffled", 4)])
    assert half.holds
    (more,) = made([bank("oracle-bank", 8), bank("shuffled", 5)])
    assert not more.holds
    assert (more.difference, more.tolerance) == pytest.approx((0.5, 0.4))
    assert made([bank("oracle-bank", 8)]) == []


def with_window(true: list[int]) -> ArmResult:
    told = {"true": true, "detected": [], "tolerance": 1, "early": 1}
    return replace(ours(), details={"borders": told})


def test_a_detector_that_is_told_the_borders_is_perfect_on_this_very_stream() -> None:
    (found,) = made([with_window([2, 5, 6, 8])])
    assert found.holds
    assert "ours on hard" in found.what


def test_borders_that_not_even_the_truth_finds_are_wrong() -> None:
    (found,) = made([replace(ours(), details={"borders": with_window([]).details["borders"]})])
    assert not found.holds


def test_a_check_that_fails_is_said_on_the_page() -> None:
    good = document(PRESETS["cpu"], PERFECT, "")
    assert good.checks
    assert "Wrong" not in to_markdown(good, [])
    bad = document(PRESETS["cpu"], [bank("oracle-bank", 8), bank("shuffled", 8)], "")
    assert "**Wrong**: accuracy on hard with shuffled ids" in to_markdown(bad, [])
