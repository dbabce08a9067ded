"""Blocks freeze from the tap upwards, without a gap."""

from __future__ import annotations

import math

from dylora_moe.training.freezing import learns_from


def test_blocks_freeze_up_to_the_first_that_still_moves() -> None:
    assert learns_from({2: 0.01, 3: 0.02, 4: 0.5, 5: 0.01, 6: 0.3}, 0.1) == 4


def test_a_block_that_still_moves_keeps_all_above_it_learning() -> None:
    assert learns_from({2: 0.5, 3: 0.0, 4: 0.0}, 0.1) == 2


def test_the_last_block_learns_in_any_case() -> None:
    assert learns_from({2: 0.0, 3: 0.0}, 0.1) == 3


def test_a_block_that_has_not_begun_has_not_converged() -> None:
    assert learns_from({2: math.inf, 3: 0.0, 4: 0.0}, 0.1) == 2
