"""Rows that are longer than the limit: refused, or left out and told, never cut and never lost
silently."""

from __future__ import annotations

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.errors import ConfigError, DataError
from dylora_moe.records import Arrival, Example, pair
from tests.pools import LETTERS, Notes, doubled, fingerprint, learn, rows, settings

LIMIT = 24


def long_rows(count: int, letter: str = "a") -> tuple[Example, ...]:
    """Rows of more tokens than the limit; the tokenizer of the tests knows characters."""
    prompts = [letter * (LIMIT + number) for number in range(count)]
    return tuple(
        pair(prompt, doubled(prompt), origin=f"long.jsonl:{number}")
        for number, prompt in enumerate(prompts, 1)
    )


def between(short: tuple[Example, ...], long: tuple[Example, ...]) -> tuple[Example, ...]:
    """The long rows spread among the short ones."""
    found = list(short)
    for number, row in enumerate(long):
        found.insert(7 * number, row)
    return tuple(found)


def keys(examples: tuple[Example, ...]) -> set[str]:
    return {example.key for example in examples}


DROP = settings(drop_long=True, max_length=LIMIT)
MIXED = between(rows(LETTERS, 64, 3), long_rows(3))


def test_long_rows_are_refused_with_their_place_and_the_options_that_help(empty: Pool) -> None:
    before = fingerprint(empty)
    with pytest.raises(DataError, match=r"^long.jsonl:1: .*--drop-long.*--max-length"):
        learn(empty, "letters", MIXED, settings=settings(max_length=LIMIT))
    assert fingerprint(empty) == before


def test_long_rows_are_left_out_and_told_and_the_others_are_what_they_were(
    empty: Pool,
) -> None:
    notes = Notes()
    assert learn(empty, "letters", MIXED, settings=DROP, watch=notes).action == "created"
    told = "letters: rows of more than 24 tokens are left out: 3, the first at long.jsonl:1"
    assert [text for text in notes.warnings if "left out" in text] == [told]
    (event,) = [event for event in empty.events("warning") if "left out" in event.message]
    assert event.message == told
    assert (event.numbers["rows"], event.numbers["first"]) == (3, "long.jsonl:1")
    record = empty.revision.skills[0]
    assert keys(empty.live.read(record.examples + record.validation)) == keys(rows(LETTERS, 64, 3))
    # The stored features are those of the rows they are stored with.
    skill = empty.live.library[record.skill_id]
    stored = {row.key: row for row in empty.live.read(record.examples)}
    again = empty.live.encode([stored[key] for key in skill.keys]).features
    assert skill.features.float() == pytest.approx(again, abs=1e-2)


def test_the_same_command_again_does_nothing_though_long_rows_are_in_no_skill(empty: Pool) -> None:
    learn(empty, "letters", MIXED, settings=DROP)
    before, events = fingerprint(empty), len(empty.events())
    notes = Notes()
    assert learn(empty, "letters", MIXED, settings=DROP, watch=notes).action == "unchanged"
    assert len(notes.warnings) == 1
    assert (fingerprint(empty), len(empty.events())) == (before, events)


def test_plan_leaves_the_same_rows_out_and_records_nothing(empty: Pool) -> None:
    notes, events = Notes(), len(empty.events())
    (plan,) = empty.plan_arrivals([Arrival("letters", MIXED)], settings=DROP, watch=notes)
    assert plan.rows == 64
    assert ["left out: 3" in text for text in notes.warnings] == [True]
    assert len(empty.events()) == events


def test_long_rows_of_a_validation_file_are_left_out_too(empty: Pool) -> None:
    named = between(rows(LETTERS, 12, 5), long_rows(2, "b"))
    learn(empty, "letters", MIXED, settings=DROP, validation=named)
    record = empty.revision.skills[0]
    assert keys(empty.live.read(record.validation)) == keys(rows(LETTERS, 12, 5))
    (event,) = [event for event in empty.events("warning") if "left out" in event.message]
    assert event.numbers["rows"] == 5


def test_an_arrival_of_nothing_but_long_rows_is_refused(empty: Pool) -> None:
    with pytest.raises(DataError, match=r"letters: all 30 rows have more than 24 tokens"):
        learn(empty, "letters", long_rows(30), settings=DROP)


def test_rows_that_waited_under_a_higher_limit_join_without_the_long_ones(empty: Pool) -> None:
    waiting = rows(LETTERS, 14, 1) + long_rows(2)
    assert learn(empty, "monday", waiting).action == "waiting"
    second = rows(LETTERS, 20, 3)
    assert learn(empty, "tuesday", second, settings=DROP).action == "created"
    record = empty.revision.skills[0]
    stored = keys(empty.live.read(record.examples + record.validation))
    assert stored == keys(waiting[:14]) | keys(second)
    (event,) = [event for event in empty.events("warning") if "left out" in event.message]
    assert event.numbers["rows"] == 2
    assert not empty._storage.examples.waiting()


def test_stored_rows_that_are_longer_than_a_later_limit_are_not_rehearsed(taught: Pool) -> None:
    learn(taught, "letters-b", between(rows(LETTERS, 40, 9), long_rows(20)), into="letters")
    result = learn(taught, "letters-c", rows(LETTERS, 64, 21), into="letters", settings=DROP)
    assert result.action in ("new version", "statistics")


def test_a_limit_beyond_the_base_s_context_is_refused(empty: Pool) -> None:
    context = empty.live.base.context_length
    assert context is not None
    far = settings(max_length=context + 1)
    with pytest.raises(ConfigError, match=f"{context + 1}, and the base's context {context}"):
        learn(empty, "letters", rows(LETTERS, 64, 3), settings=far)
