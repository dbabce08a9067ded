from __future__ import annotations

import math
from dataclasses import replace

import pytest

from dylora_moe.lifecycle.scorecard import RowScore, Scorecard, SkillCard


def card(**losses: float) -> SkillCard:
    """One row of two tokens for each loss."""
    rows = tuple(
        RowScore(key, {"expert_1@1": 0.75}, 2 * loss, 2, 1.0) for key, loss in losses.items()
    )
    return SkillCard("sql", "expert_1@1", 0.1, rows)


def test_a_row_moved_when_a_weight_changed_by_more_than_a_hundredth_or_the_version_did() -> None:
    row = RowScore("k", {"expert_1@1": 0.75}, 1.0, 2)
    assert not row.moved({"expert_1@1": 0.755})
    assert row.moved({"expert_1@1": 0.77})
    assert row.moved({"expert_1@2": 0.75})
    assert row.moved({})
    assert row.moved({"expert_1@1": 0.75, "expert_2@1": 0.2})


def test_a_skill_s_numbers_are_those_of_its_rows() -> None:
    found = replace(card(a=1.0, b=3.0), rows=(*card(a=1.0).rows, RowScore("b", {}, 9.0, 3)))
    assert found.loss == pytest.approx(11 / 5)
    assert found.accuracy == 1.0
    assert found.shares == pytest.approx({"expert_1": 0.375, "base": 0.625})


def test_a_card_is_read_back_as_it_was_written() -> None:
    whole = Scorecard({"s1": card(a=1.0, b=2.0), "s2": SkillCard("new", "expert_2@1", 0.2, ())})
    again = Scorecard.from_bytes(whole.to_bytes("monday"))
    assert again == whole
    assert math.isnan(again.skills["s2"].loss)


def test_cards_are_compared_over_the_rows_that_both_have() -> None:
    before = Scorecard({"s1": card(a=1.0, b=5.0), "gone": card(x=1.0)})
    after = Scorecard({"s1": card(a=2.0, c=9.0), "new": card(y=1.0)})
    (name, pair), *others = before.compared(after).items()
    assert (name, others) == ("sql", [])
    assert (list(pair.second), list(pair.first)) == ([1.0], [2.0])
    assert pair.weights is not None
    assert list(pair.weights) == [2]
