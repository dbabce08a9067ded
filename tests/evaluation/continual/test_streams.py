from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dylora_moe.errors import DataError
from dylora_moe.evaluation.continual.presets import PRESETS
from dylora_moe.evaluation.continual.streams import STREAMS, Stream, blurred, hard, mixed, returning
from tests.evaluation.continual.made_up import NAMES, rows_of, skills_of

# A loaded machine is no failure.
LAW = settings(
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
)

KINDS = pytest.mark.parametrize("kind", sorted(STREAMS))
SKILLS, ROWS = st.integers(2, 4), st.integers(1, 30)
BATCH, SEED = st.integers(1, 17), st.integers(0)


def changes(stream: Stream) -> tuple[int, ...]:
    """Where a row is of another skill than the row before."""
    pairs = pairwise(stream.truth.skills)
    return tuple(n for n, (one, other) in enumerate(pairs, start=1) if one != other)


def test_every_stream_is_in_the_list_under_its_name() -> None:
    assert set(STREAMS) == {"hard", "blurred", "returning", "mixed"}
    for kind, make in STREAMS.items():
        assert make(skills_of(2), rows=4, batch=2).kind == kind


@KINDS
@LAW
@given(count=SKILLS, rows=ROWS, batch=BATCH, seed=SEED)
def test_every_row_comes_once_with_its_own_skill_and_key(
    kind: str, count: int, rows: int, batch: int, seed: int
) -> None:
    stream = STREAMS[kind](skills_of(count), rows=rows, batch=batch, seed=seed)
    seen = [row for one in stream.batches for row in one]
    visits = count + (kind == "returning")
    assert len(seen) == len({row.key for row in seen}) == rows * visits
    assert tuple(row.key for row in seen) == stream.truth.keys
    assert tuple(row.prompt.split()[0] for row in seen) == stream.truth.skills
    assert all(stream.truth.skill_of[row.key] == row.prompt.split()[0] for row in seen)
    ends = {stream.batch_of(row - 1) for row in (*stream.truth.returns, rows * visits)}
    assert {len(b) for n, b in enumerate(stream.batches) if n not in ends} <= {batch}
    assert all(0 < len(stream.batches[n]) <= batch for n in ends)
    for skill in NAMES[:count]:
        assert stream.truth.skills.count(skill) % rows == 0


@KINDS
@LAW
@given(count=SKILLS, rows=ROWS, seed=SEED)
def test_how_rows_are_cut_into_batches_changes_nothing_else(
    kind: str, count: int, rows: int, seed: int
) -> None:
    whole = STREAMS[kind](skills_of(count), rows=rows, batch=1, seed=seed)
    cut = STREAMS[kind](skills_of(count), rows=rows, batch=7, seed=seed)
    assert cut.truth == whole.truth
    assert sum(cut.batches, ()) == sum(whole.batches, ())


@KINDS
def test_the_seed_decides_the_stream(kind: str) -> None:
    made = [STREAMS[kind](skills_of(3), rows=20, batch=8, seed=seed) for seed in (1, 1, 2)]
    assert made[0] == made[1]
    assert made[0].truth.keys != made[2].truth.keys


@KINDS
def test_the_batches_betray_no_skill(kind: str) -> None:
    stream = STREAMS[kind](skills_of(3), rows=20, batch=8)
    assert all(row.origin == "" for one in stream.batches for row in one)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stream.truth = None


@LAW
@given(count=SKILLS, rows=ROWS, batch=BATCH, seed=SEED)
def test_the_borders_of_hard_switches_are_where_the_skill_changes(
    count: int, rows: int, batch: int, seed: int
) -> None:
    stream = hard(skills_of(count), rows=rows, batch=batch, seed=seed)
    assert stream.truth.borders == changes(stream)
    assert stream.truth.returns == ()
    assert [visit.skill for visit in stream.truth.visits] == list(NAMES[:count])
    for border in stream.truth.borders:
        place = stream.batch_of(border)
        row = stream.batches[place][border - stream.starts[place]]
        assert row.key == stream.truth.keys[border]
    assert set(stream.border_batches) == {stream.batch_of(b) for b in stream.truth.borders}


def test_borders_in_one_batch_are_one_to_a_learner() -> None:
    stream = hard(skills_of(4), rows=4, batch=6)
    assert stream.truth.borders == (4, 8, 12)
    assert stream.border_batches == (0, 1, 2)
    assert hard(skills_of(4), rows=4, batch=9).border_batches == (0, 1)


@LAW
@given(count=SKILLS, rows=ROWS, batch=BATCH, seed=SEED)
def test_a_skill_that_returns_brings_other_rows_behind_a_border_of_its_own(
    count: int, rows: int, batch: int, seed: int
) -> None:
    stream = returning(skills_of(count), rows=rows, batch=batch, seed=seed)
    assert stream.truth.borders == changes(stream)
    assert [visit.skill for visit in stream.truth.visits] == [*NAMES[:count], NAMES[0]]
    assert stream.truth.returns == (count * rows,)
    first, last = stream.truth.visits[0], stream.truth.visits[-1]
    before = set(stream.truth.keys[first.start : first.stop])
    assert not before & set(stream.truth.keys[last.start : last.stop])


@LAW
@given(count=SKILLS, rows=ROWS, batch=BATCH, seed=SEED)
def test_what_comes_before_a_return_is_the_stream_of_hard_switches_batch_by_batch(
    count: int, rows: int, batch: int, seed: int
) -> None:
    there, back = (
        make(skills_of(count), rows=rows, batch=batch, seed=seed) for make in (hard, returning)
    )
    begun = back.batch_of(back.truth.returns[0])
    assert back.batches[:begun] == there.batches
    assert back.starts[begun] == back.truth.returns[0]
    rest = sum(back.batches[begun:], ())
    assert [back.truth.skill_of[row.key] for row in rest] == [NAMES[0]] * rows


@KINDS
@LAW
@given(count=SKILLS, rows=ROWS, batch=BATCH)
def test_every_row_is_in_the_batch_that_is_said(
    kind: str, count: int, rows: int, batch: int
) -> None:
    stream = STREAMS[kind](skills_of(count), rows=rows, batch=batch)
    places = [n for n, one in enumerate(stream.batches) for _ in one]
    assert [stream.batch_of(row) for row in range(len(stream.truth.keys))] == places


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_batches_of_a_preset_tell_no_switch(name: str) -> None:
    preset = PRESETS[name]
    count = min(3, len(preset.skills))
    for kind in ("hard", "blurred"):
        skills = skills_of(count, 2 * preset.rows)
        stream = STREAMS[kind](skills, rows=preset.rows, batch=preset.batch)
        inside = [border not in stream.starts for border in stream.truth.borders]
        assert all(inside), (name, kind)


@LAW
@given(count=SKILLS, rows=ROWS, seed=SEED, share=st.floats(0, 0.5), data=st.data())
def test_near_a_blurred_switch_a_share_of_the_rows_is_of_the_other_side(
    count: int, rows: int, seed: int, share: float, data: st.DataObject
) -> None:
    near = data.draw(st.integers(0, rows // 2))
    stream = blurred(skills_of(count), rows=rows, batch=5, seed=seed, share=share, near=near)
    straight = hard(skills_of(count), rows=rows, batch=5, seed=seed)
    assert stream.truth.visits == straight.truth.visits
    assert set(stream.truth.keys) == set(straight.truth.keys)
    pure = set(range(count * rows))
    for border in stream.truth.borders:
        left, right = range(border - near, border), range(border, border + near)
        pure -= {*left, *right}
        one, other = straight.truth.skills[border - 1], straight.truth.skills[border]
        for zone, owner, guest in ((left, one, other), (right, other, one)):
            guests = sum(stream.truth.skills[n] == guest for n in zone)
            assert guests == sum(stream.truth.skills[n] != owner for n in zone)
            assert abs(guests - share * near) <= 0.5 + 1e-9
    assert all(stream.truth.keys[n] == straight.truth.keys[n] for n in pure)


def test_by_default_a_fifth_of_a_quarter_of_a_visit_is_mixed() -> None:
    stream = blurred(skills_of(2), rows=60, batch=15, seed=3)
    away = [n for n, skill in enumerate(stream.truth.skills) if skill != NAMES[n // 60]]
    assert [n < 60 for n in away] == [True] * 3 + [False] * 3
    assert all(45 <= n < 75 for n in away)


def test_mixed_traffic_has_no_borders_and_every_skill_nearly_everywhere() -> None:
    stream = mixed(skills_of(3), rows=60, batch=30)
    assert (stream.truth.visits, stream.truth.borders, stream.border_batches) == ((), (), ())
    keys = [{stream.truth.skill_of[row.key] for row in one} for one in stream.batches]
    assert all(found == set(NAMES[:3]) for found in keys)
    assert len(changes(stream)) > 60


def test_a_skills_rows_are_the_same_beside_other_skills() -> None:
    alone, beside = hard(skills_of(2), rows=9, batch=9), hard(skills_of(4), rows=9, batch=9)
    assert beside.batches[:2] == alone.batches


@KINDS
def test_too_few_skills_or_rows_are_refused(kind: str) -> None:
    make = STREAMS[kind]
    with pytest.raises(DataError, match="at least two skills, found 1"):
        make(skills_of(1), rows=4, batch=2)
    with pytest.raises(DataError, match=r"sums: \d+ rows are needed"):
        make(skills_of(2), rows=61, batch=2)
    with pytest.raises(DataError, match="0 rows a visit"):
        make(skills_of(2), rows=0, batch=2)
    with pytest.raises(DataError, match="0 rows a batch"):
        make(skills_of(2), rows=4, batch=0)
    with pytest.raises(DataError, match="one name"):
        make((*skills_of(1), *skills_of(1)), rows=4, batch=2)


def test_a_return_needs_the_rows_of_two_visits() -> None:
    with pytest.raises(DataError, match="sums: 62 rows are needed"):
        returning(skills_of(2), rows=31, batch=2)


def test_a_row_of_two_skills_is_refused() -> None:
    sums, hats = skills_of(2, rows=4)
    both = dataclasses.replace(hats, train=(*hats.train[1:], rows_of("sums", 1)[0]))
    with pytest.raises(DataError, match="a row comes twice"):
        hard((sums, both), rows=4, batch=2)


@pytest.mark.parametrize(("share", "near"), [(0.6, 1), (-0.1, 1), (0.2, 6), (0.2, -1)])
def test_a_blur_out_of_range_is_refused(share: float, near: int) -> None:
    with pytest.raises(DataError, match="out of range"):
        blurred(skills_of(2), rows=10, batch=2, share=share, near=near)
