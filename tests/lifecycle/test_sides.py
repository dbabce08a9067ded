"""Rows that validate are never trained on, whatever way they come back."""

from __future__ import annotations

from dylora_moe.build.pool import Pool
from dylora_moe.records import Example
from dylora_moe.text.split import validates
from tests.pools import LETTERS, learn, rows, settings


def sides(pool: Pool) -> tuple[set[str], set[str]]:
    """Keys of all rows that any skill was trained on, and of those it is validated on."""
    live = pool.live
    trained = {e.key for record in live.revision.skills for e in live.read(record.examples)}
    held_out = {e.key for record in live.revision.skills for e in live.read(record.validation)}
    return trained, held_out


def keys(examples: tuple[Example, ...]) -> set[str]:
    return {example.key for example in examples}


def test_rows_that_return_stay_on_their_side(empty: Pool) -> None:
    first, more = rows(LETTERS, 64, 3), rows(LETTERS, 64, 13)
    learn(empty, "letters", first)
    trained, held_out = sides(empty)
    assert learn(empty, "back", first[::2] + more).action != "unchanged"
    after_trained, after_held_out = sides(empty)
    assert trained < after_trained
    assert held_out < after_held_out
    assert not after_trained & after_held_out


def test_rows_of_a_validation_file_that_return_without_it_are_still_held_out(empty: Pool) -> None:
    named = tuple(e for e in rows(LETTERS, 60, 5) if not validates(e))
    learn(empty, "letters", rows(LETTERS, 64, 3), validation=named)
    assert sides(empty)[1] == keys(named)
    learn(empty, "back", named + rows(LETTERS, 64, 13))
    trained, held_out = sides(empty)
    assert not trained & keys(named)
    assert keys(named) < held_out


def test_rows_that_were_trained_on_do_not_validate_later(empty: Pool) -> None:
    learn(empty, "letters", rows(LETTERS, 64, 3))
    trained, _ = sides(empty)
    own = tuple(e for e in rows(LETTERS, 64, 3) if e.key in trained)[:10]
    fresh = rows(LETTERS, 12, 17)
    learn(empty, "more", rows(LETTERS, 64, 13), validation=own + fresh)
    after_trained, held_out = sides(empty)
    assert trained < after_trained
    assert keys(fresh) <= held_out
    assert not held_out & trained


def test_another_share_of_validation_rows_moves_no_row_that_is_stored(empty: Pool) -> None:
    first = rows(LETTERS, 64, 3)
    learn(empty, "letters", first)
    trained, held_out = sides(empty)
    half = settings(validation_fraction=0.5)
    learn(empty, "more", first + rows(LETTERS, 64, 13), settings=half)
    after_trained, after_held_out = sides(empty)
    assert trained <= after_trained
    assert held_out <= after_held_out
    assert not after_trained & after_held_out


def test_a_validation_file_of_rows_that_wait_is_not_learned_when_they_are(empty: Pool) -> None:
    named = rows(LETTERS, 8, 5)
    few = rows(LETTERS, 12, 3)
    assert learn(empty, "monday", few, validation=named).action == "waiting"
    # The same name again, with the file: what waited joins, and the file's rows stay out of it.
    assert learn(empty, "monday", few + rows(LETTERS, 20, 7), validation=named).action == "created"
    trained, held_out = sides(empty)
    assert keys(few) <= trained
    assert held_out == keys(named)


def test_a_batch_that_joins_rows_that_wait_does_not_learn_what_they_were_to_be_validated_on(
    empty: Pool,
) -> None:
    named = tuple(example for example in rows(LETTERS, 10, 5) if not validates(example))
    learn(empty, "monday", rows(LETTERS, 12, 3), validation=named)
    assert learn(empty, "tuesday", rows(LETTERS, 20, 7)).action == "created"
    trained, held_out = sides(empty)
    assert len(trained | held_out) == 32
    assert not trained & keys(named)
