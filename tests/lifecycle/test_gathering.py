"""Which rows that wait are learned along with an arrival, and which stay."""

from __future__ import annotations

from dylora_moe.build.pool import Pool
from dylora_moe.records import Example
from tests.pools import DIGITS, LETTERS, learn, rows, settings, shouted


def stored(pool: Pool) -> set[Example]:
    return {
        example
        for skill in pool.revision.skills
        for example in pool.live.read(skill.examples + skill.validation)
    }


def test_rows_of_the_same_name_and_another_kind_go_on_waiting(empty: Pool) -> None:
    few = rows(LETTERS, 10, 3)
    assert learn(empty, "batch", few).action == "waiting"
    assert learn(empty, "batch", rows(DIGITS, 64, 4)).action == "created"
    assert stored(empty) == set(rows(DIGITS, 64, 4))
    ((name, waiting),) = empty._storage.examples.waiting()
    assert (name, set(waiting)) == ("batch", set(few))


def test_a_handful_of_rows_joins_by_its_name_alone(empty: Pool) -> None:
    # So few are all alike to a measurement.
    few, own = rows(LETTERS, 3, 14), rows(DIGITS, 4, 9)
    learn(empty, "few", few)
    learn(empty, "near", own)
    assert learn(empty, "near", rows("defghi", 64, 4)).action == "created"
    assert stored(empty) == {*rows("defghi", 64, 4), *own}
    ((name, waiting),) = empty._storage.examples.waiting()
    assert (name, set(waiting)) == ("few", set(few))


def test_a_waiting_row_with_another_answer_to_a_prompt_of_the_arrival_is_not_learned(
    empty: Pool,
) -> None:
    old = rows(LETTERS, 16, 3, shouted)
    assert learn(empty, "monday", old).action == "waiting"
    new = (*rows(LETTERS, 8, 3), *rows(LETTERS, 40, 7))
    assert {row.prompt for row in old} & {row.prompt for row in new}
    assert learn(empty, "tuesday", new).action == "created"
    prompts = {row.prompt for row in new}
    assert stored(empty) == {*new, *(row for row in old if row.prompt not in prompts)}


def test_rows_that_had_waited_for_a_step_that_is_taken_back_are_named(empty: Pool) -> None:
    learn(empty, "monday", rows(LETTERS, 16, 1))
    assert learn(empty, "tuesday", rows(LETTERS, 20, 3)).action == "created"
    assert empty.events("promoted")[-1].numbers["waited"] == {"monday": 16}
    empty.rollback()
    told = empty.events("promoted")[-1]
    assert told.numbers["waited"] == {"monday": 16}
    assert "must be brought again: monday (16 rows)" in told.message
    # Together they are what they were.
    assert learn(empty, "tuesday", rows(LETTERS, 20, 3)).action == "waiting"
    assert learn(empty, "monday", rows(LETTERS, 16, 1)).action == "created"


def test_rows_beyond_the_stored_sample_are_counted_once(empty: Pool) -> None:
    fast = settings(
        seeding=None,
        consolidation={"epochs": 1, "learning_rate": 1e-9, "max_examples": 32},
        more_data={"learning_rate": 1e-9, "max_examples": 32},
        generate_scores=0,
    )
    first = rows(LETTERS, 700, 3)
    learn(empty, "letters", first, settings=fast)
    learn(empty, "more", first + rows(LETTERS, 20, 77), settings=fast)
    (record,) = empty.revision.skills
    assert record.count == len(empty.live.read(record.examples))
    assert record.count > empty.live.library.capacity
