"""Events, scores and logs are read as they were written, and as they break."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dylora_moe.build.run_logs import timeline
from dylora_moe.errors import ArtifactError
from dylora_moe.evaluation.history import History, collect
from dylora_moe.evaluation.steps import read_steps
from dylora_moe.records import Event, Interval
from tests.evaluation.pools import PoolWriter, empty_pool, long_pool, small_pool


def history_of(pool: PoolWriter) -> History:
    return collect(pool.registry, pool.artifacts, pool.root)


def test_an_arrival_keeps_its_verdict_numbers_and_outcome(tmp_path: Path) -> None:
    first, second, third = history_of(small_pool(tmp_path)).steps
    assert (first.verdict, first.action, first.separability) == ("novel", "created", None)
    assert second.separability == Interval(0.97, 0.94, 0.99)
    assert second.fit == Interval(0.93, 0.88, 0.97)
    assert (second.expert, second.version, second.skill) == ("expert_1", 1, "colours")
    assert second.gate is not None
    assert second.gate.worst == ("sums", pytest.approx(0.002))
    assert (third.verdict, third.action, third.revision) == ("known", "unfinished", second.revision)


def test_waiting_and_rejected_arrivals_say_so(tmp_path: Path) -> None:
    pool = empty_pool(tmp_path)
    pool.arrive("few", "unsure", "waiting", "", {}, rows=9)
    pool.arrive("bad", "novel", "rejected", "", {})
    actions = [(step.name, step.action, step.reason) for step in history_of(pool).steps]
    assert actions == [
        ("few", "waiting", "waiting for a reason"),
        ("bad", "rejected", "rejected for a reason"),
    ]


def test_an_error_in_a_run_fails_its_arrival_and_no_other(tmp_path: Path) -> None:
    pool = small_pool(tmp_path)
    pool.registry.record(
        Event("arrival", {"arrival": "d", "verdict": "novel"}),
        Event("error", {"arrival": "e"}, "no such file"),
        Event("error", {"arrival": "d"}, "the loss is not finite"),
    )
    steps = history_of(pool).steps
    assert [step.action for step in steps] == ["created", "created", "unfinished", "failed"]
    assert steps[-1].reason == "the loss is not finite"


def test_an_arrival_that_broke_off_and_was_resumed_is_one_step(tmp_path: Path) -> None:
    pool = small_pool(tmp_path)
    pool.registry.record(Event("error", {"arrival": "c"}, "out of memory"))
    pool.arrive("c", "known", "new version", "colours", {"sums": 0.88, "colours": 0.75}, rows=300)
    history = history_of(pool)
    assert [(step.number, step.action, step.rows) for step in history.steps][2:] == [
        (3, "new version", 300)
    ]
    assert [notice.text for notice in history.notices] == ["out of memory"]


def test_experts_are_known_by_their_latest_name(tmp_path: Path) -> None:
    pool = small_pool(tmp_path)
    revision = pool.registry.current()
    pool.experts[0] = replace(pool.experts[0], alias="arithmetic")
    pool.registry.commit(
        replace(revision, experts=tuple(pool.experts)),
        [Event("promoted", {"revision": 3, "action": "renamed", "expert": "arithmetic"})],
    )
    history = history_of(pool)
    assert history.steps[0].expert == "expert_0"
    assert history.trainings[0].expert == "expert_0"
    assert history.alias("expert_0") == "arithmetic"
    assert history.experts[0].n_bytes == 7_180_000


def test_two_arrivals_of_one_name_are_two_steps(tmp_path: Path) -> None:
    pool = small_pool(tmp_path)
    pool.arrive("a", "known", "new version", "sums", {"sums": 0.95, "colours": 0.7})
    steps = history_of(pool).steps
    assert [(step.name, step.version) for step in steps if step.name == "a"] == [("a", 1), ("a", 2)]


def test_import_and_rollback_are_steps_and_a_rename_is_not(tmp_path: Path) -> None:
    pool = small_pool(tmp_path)
    back = {"revision": 1, "action": "rolled back"}
    pool.registry.move_to(1, Event("promoted", back, "undone"))
    pool.registry.record(Event("promoted", {"revision": 1, "action": "renamed"}))
    history = history_of(pool)
    assert [step.kind for step in history.steps] == ["arrival"] * 3 + ["rolled back"]
    assert [row and row.accuracy for row in history.latest] == [0.90, None]
    assert history.experts_after == (1, 2, 2, 1)


def test_events_without_a_run_belong_to_the_arrival_they_name(tmp_path: Path) -> None:
    events = [
        Event("arrival", {"arrival": "a"}),
        Event("arrival", {"arrival": "b"}),
        Event("rejected", {"arrival": "a", "reason": "r"}),
    ]
    steps, owners = read_steps(events, [])
    assert [step.action for step in steps] == ["rejected", "unfinished"]
    assert owners == (0, 1, 0)


def test_damaged_scores_are_refused(tmp_path: Path) -> None:
    pool = small_pool(tmp_path)
    (tmp_path / "scores" / "1.json").write_text("{}")
    with pytest.raises(ArtifactError, match="hash"):
        history_of(pool)


def test_runs_come_in_the_order_of_their_arrivals_under_their_names(tmp_path: Path) -> None:
    history = history_of(long_pool(tmp_path))
    assert [run.number for run in history.runs] == list(range(1, 9))
    assert [run.name for run in history.runs] == [step.name for step in history.steps]
    assert [span.name for span in history.runs[0].phases] == ["seeding", "consolidation"]


def test_a_timeline_counts_the_steps_of_the_runs_before(tmp_path: Path) -> None:
    history = history_of(long_pool(tmp_path))
    pieces = timeline(history.runs, "routing_entropy")
    assert [positions[0] for _, positions, _ in pieces[:3]] == [2, 98, 194]
