from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dylora_moe.errors import TrainingError
from dylora_moe.training import updates
from dylora_moe.training.phases import Phase
from dylora_moe.training.updates import plan_updates

LENGTHS = [random.Random(0).randint(5, 60) for _ in range(100)]


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=60),
    batch_size=st.integers(1, 9),
    accumulation=st.integers(1, 3),
    packing=st.booleans(),
    epochs=st.integers(1, 3),
)
def test_every_row_comes_once_an_epoch(
    lengths: list[int], batch_size: int, accumulation: int, packing: bool, epochs: int
) -> None:
    phase = Phase(
        "a", epochs=float(epochs), batch_size=batch_size, accumulation=accumulation,
        packing=packing,
    )  # fmt: skip
    plan = plan_updates(lengths, phase, 0)
    start = 0
    for end in plan.epoch_ends:
        rows = [i for update in plan.updates[start:end] for one in update for i in one]
        assert sorted(rows) == list(range(len(lengths)))
        start = end
    assert plan.epoch_ends[-1] == plan.steps
    assert plan.epoch(plan.steps) == epochs
    assert plan.padding_fraction <= 0.1


def test_updates_have_about_the_rows_they_were_asked_for() -> None:
    plan = plan_updates(LENGTHS, Phase("a", epochs=1.0, batch_size=4, accumulation=2), 0)
    sizes = [sum(len(one) for one in update) for update in plan.updates]
    assert all(6 <= size <= 9 for size in sizes[:-1])
    assert max(len(one) for update in plan.updates for one in update) <= 4


def test_epochs_differ_and_seeds_repeat() -> None:
    phase = Phase("a", epochs=2.0)
    plan = plan_updates(LENGTHS, phase, 0)
    first, second = plan.updates[: plan.epoch_ends[0]], plan.updates[plan.epoch_ends[0] :]
    assert first != second
    assert plan_updates(LENGTHS, phase, 0) == plan
    assert plan_updates(LENGTHS, phase, 7) != plan


def test_part_of_an_epoch_is_a_part_of_its_updates() -> None:
    whole = plan_updates(LENGTHS, Phase("a", epochs=1.0), 0)
    half = plan_updates(LENGTHS, Phase("a", epochs=0.5), 0)
    assert half.updates == whole.updates[: (whole.steps + 1) // 2]
    assert half.epoch(half.steps) == 0.5
    assert half.epoch(1) == 0.5 / half.steps
    more = plan_updates(LENGTHS, Phase("a", epochs=1.25), 0)
    assert (more.epoch(whole.steps), more.epoch(more.steps)) == (1.0, 1.25)
    assert more.epoch(whole.steps + 1) == 1 + 0.25 / (more.steps - whole.steps)


def test_only_some_rows_are_taken_where_asked() -> None:
    plan = plan_updates(LENGTHS, Phase("a", epochs=2.0, max_examples=10), 0)
    counts = Counter(i for update in plan.updates for one in update for i in one)
    assert set(counts.values()) == {2}
    assert len(counts) == 10


def test_packing_pads_nothing_and_keeps_to_its_capacity() -> None:
    plan = plan_updates(LENGTHS, Phase("a", epochs=1.0, packing=True, batch_size=8), 0)
    assert plan.padding_fraction == 0.0
    assert sum(plan.sequence_lengths) == sum(LENGTHS)
    assert max(plan.sequence_lengths) <= max(max(LENGTHS), -(-8 * sum(LENGTHS) // len(LENGTHS)))


def test_no_rows_are_told() -> None:
    with pytest.raises(TrainingError, match="no rows"):
        plan_updates([], Phase("a"), 0)


def test_the_longest_rows_share_an_update_and_no_pass() -> None:
    lengths = [50 + i % 7 for i in range(56)] + [200, 190, 210, 195, 180, 205, 185, 199]
    plan = plan_updates(lengths, Phase("a", epochs=1.0), seed=0)
    mean = sum(lengths) / len(lengths)
    sizes = [
        len(rows) * max(lengths[row] for row in rows) for update in plan.updates for rows in update
    ]
    assert max(sizes) <= max(210, 1.5 * 8 * mean)
    assert [sum(map(len, update)) for update in plan.updates] == [8] * 8
    assert sorted(row for up in plan.updates for rows in up for row in rows) == list(range(64))


def test_a_row_longer_than_the_room_runs_alone() -> None:
    plan = plan_updates([10] * 15 + [4000], Phase("a", epochs=1.0), seed=0)
    assert (15,) in [rows for update in plan.updates for rows in update]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("long", [120, 260, 900])
def test_cutting_passes_moves_no_row_to_another_update(
    long: int, accumulation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [50 + i % 7 for i in range(56)] + [long + i for i in range(8)]
    phase = Phase("a", epochs=2.0, accumulation=accumulation)
    cut = plan_updates(lengths, phase, seed=0)
    monkeypatch.setattr(updates, "_ROOM", math.inf)
    whole = plan_updates(lengths, phase, seed=0)
    rows = [
        [sorted(row for rows in update for row in rows) for update in plan.updates]
        for plan in (cut, whole)
    ]
    assert rows[0] == rows[1]
    assert cut.epoch_ends == whole.epoch_ends
    assert cut.padding_fraction <= whole.padding_fraction
