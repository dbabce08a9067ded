"""Two versions are weighed on the skill's own rows, in slices that come to the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.trial import weigh_versions
from dylora_moe.records import Example, Interval
from dylora_moe.training.measure import answer_losses
from dylora_moe.training.rows import Rows


def weighed(live: LivePool, old: str, new: str, slice_rows: int) -> tuple[Interval | None, int]:
    work = weigh_versions(live, "expert_1", old, new, slice_rows=slice_rows)
    yields = 0
    while True:
        try:
            next(work)
            yields += 1
        except StopIteration as done:
            return done.value, yields


def test_slices_come_to_the_ratio_of_the_whole(taught: Pool) -> None:
    live = taught.live
    rows = next(s.rows for s in live.skills.values() if s.expert_id == "expert_1")
    assert rows is not None
    losses = {e: answer_losses(live.model, rows, expert=e).mean for e in ("expert_1", "expert_2")}
    found, yields = weighed(live, "expert_1", "expert_2", 3)
    assert found is not None
    assert found.value == pytest.approx(losses["expert_2"] / losses["expert_1"] - 1, rel=1e-4)
    assert found.low > 0, "another skill's expert is surely worse"
    assert yields == 2 * -(-len(rows) // 3)
    assert weighed(live, "expert_1", "expert_1", 100)[0] == Interval(0.0, 0.0, 0.0)


def test_no_more_rows_are_read_at_a_time_than_are_measured(
    taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    encode = taught.live.encode

    def spied(examples: Sequence[Example], **options: Any) -> Rows:
        read.append(len(examples))
        return encode(examples, **options)

    monkeypatch.setattr(taught.live, "encode", spied)
    weighed(taught.live, "expert_1", "expert_2", 3)
    (held_out,) = [s.validation for s in taught.live.skills.values() if s.expert_id == "expert_1"]
    assert sum(read) == len(held_out) > 3
    assert max(read) == 3
