"""The second axis: how an expert does on new rows against the base and against its own data."""

from __future__ import annotations

import math

import pytest
import torch

from dylora_moe.lifecycle.judgement import relative_loss
from dylora_moe.training.measure import RowLosses


def losses(mean: float, spread: float = 0.0, n: int = 40) -> RowLosses:
    tokens = torch.full((n,), 4)
    noise = spread * torch.linspace(-1, 1, n)
    return RowLosses((mean + noise) * tokens, tokens)


def test_as_good_as_at_home_is_nought_and_no_better_than_the_base_is_one() -> None:
    base = losses(3.0)
    assert relative_loss(losses(1.0), base, own=1.0).value == pytest.approx(0.0, abs=1e-6)
    assert relative_loss(losses(3.0), base, own=1.0).value == pytest.approx(1.0)
    assert relative_loss(losses(2.0), base, own=1.0).value == pytest.approx(0.5)


def test_the_interval_holds_the_estimate_and_widens_with_the_rows_spread() -> None:
    base = losses(3.0)
    narrow, wide = (relative_loss(losses(2.0, s), base, own=1.0) for s in (0.1, 0.8))
    for found in (narrow, wide):
        assert found.low < found.value < found.high
    assert wide.high - wide.low > 4 * (narrow.high - narrow.low)


def test_an_expert_that_never_was_validated_is_measured_from_nought() -> None:
    assert relative_loss(losses(1.5), losses(3.0), own=math.nan).value == pytest.approx(0.5)


def test_a_base_no_worse_than_the_expert_at_home_makes_no_division_by_nought() -> None:
    found = relative_loss(losses(1.1), losses(1.0), own=1.0)
    assert found.value == pytest.approx(1.0, abs=0.01)
    assert math.isfinite(found.high)
