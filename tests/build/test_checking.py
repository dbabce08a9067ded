"""What can be known before anything is learned is told before anything is learned."""

from __future__ import annotations

import sys

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.errors import DataError, MissingExtraError, PoolError
from dylora_moe.lifecycle.recipe import Order
from dylora_moe.records import Arrival, pair
from tests.pools import DIGITS, LETTERS, Notes, learn, rows, settings

LONG = pair("a" * 40, "b", origin="later.jsonl:7")
FIRST = Arrival("letters", rows(LETTERS, 64, 3))


@pytest.mark.parametrize("held_out", [False, True])
def test_a_row_too_long_in_a_later_arrival_is_found_before_the_first_is_learned(
    empty: Pool, held_out: bool
) -> None:
    digits = rows(DIGITS, 64, 4)
    later = Arrival("digits", digits, (LONG,)) if held_out else Arrival("digits", (*digits, LONG))
    with pytest.raises(DataError, match=r"^later.jsonl:7"):
        empty.learn_arrivals([FIRST, later], settings=settings(max_length=24))
    assert empty.revision.number == 0
    assert not empty.unfinished()


def test_an_unknown_skill_or_an_unusable_name_is_found_before_the_first_is_learned(
    empty: Pool,
) -> None:
    later = Arrival("digits", rows(DIGITS, 64, 4))
    for order in (Order(into="nothing"), Order(name="a/b"), Order(name="base")):
        with pytest.raises(PoolError):
            empty.check_arrivals([(FIRST, Order()), (later, order)])
    # What an earlier arrival may become can be learned into.
    empty.check_arrivals([(FIRST, Order()), (later, Order(into="letters"))])
    empty.check_arrivals([(FIRST, Order(name="abc")), (later, Order(into="abc"))])


def test_a_missing_extra_is_found_before_anything_is_learned(
    empty: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match="wandb"):
        empty.learn_arrivals([FIRST], settings=settings(report_to=["wandb"]))
    assert not empty.unfinished()


def test_a_name_for_a_new_expert_is_told_to_have_no_effect_where_there_is_none(
    taught: Pool,
) -> None:
    for examples in (rows(LETTERS, 32, 9), rows(LETTERS, 64, 3)):
        notes = Notes()
        result = learn(taught, "more", examples, name="mine", watch=notes)
        assert result.expert == "letters"
        assert ["'mine' has no effect" in text for text in notes.warnings].count(True) == 1
    notes = Notes()
    learn(taught, "letters", rows(LETTERS, 64, 3), name="letters", watch=notes)
    assert notes.warnings == []
