from __future__ import annotations

import errno
import math
import os
from itertools import count

import pytest

from dylora_moe.errors import ArtifactError, PoolError, StorageFullError
from dylora_moe.storage.runs import RunFolders


@pytest.fixture
def runs(tmp_path):
    ticks = count()
    clock = lambda: f"2025-01-01T00:00:{next(ticks):02d}.000+00:00"  # noqa: E731
    return RunFolders(tmp_path / "runs", tmp_path / ".staging", clock)


def test_a_journal_comes_back_in_another_process(runs):
    run = runs.create({"phase": "seed"})
    state = {"phase": "consolidate", "losses": [1.5, math.inf], "nested": {"a": None}}
    run.save(state)
    assert runs.get(run.id).state() == state
    assert runs.get(run.id).path == run.path


def test_unfinished_runs_are_listed_oldest_first_until_they_finish(runs):
    made = [runs.create({"n": n}) for n in range(3)]
    made[1].finish()
    assert made[1].finished
    assert made[1].state() == {"n": 1}
    assert [run.state()["n"] for run in runs.unfinished()] == [0, 2]
    assert [run.state()["n"] for run in runs.all()] == [0, 1, 2]
    made[0].remove()
    assert [run.id for run in runs.unfinished()] == [made[2].id]


def test_a_finished_run_keeps_its_journal_and_its_numbers_and_no_checkpoints(runs):
    run, going = runs.create({"n": 1}), runs.create({"n": 2})
    for each in (run, going):
        (each.path / "checkpoints" / "01-seeding-done").mkdir(parents=True)
        (each.path / "metrics.jsonl").write_text("{}\n")
    run.finish()
    assert sorted(file.name for file in run.path.iterdir()) == ["journal.json", "metrics.jsonl"]
    assert (going.path / "checkpoints" / "01-seeding-done").is_dir()
    run.finish()
    assert run.finished


def test_a_journal_is_replaced_whole_or_not_at_all(runs, monkeypatch):
    run = runs.create({"n": 0})

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    for name in ("write", "fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(StorageFullError):
                run.save({"n": 1})
            with pytest.raises(StorageFullError):
                runs.create({"n": 2})
    assert run.state() == {"n": 0}
    assert [each.name for each in run.path.iterdir()] == ["journal.json"]
    assert [each.id for each in runs.all()] == [run.id]


def test_ids_are_plain_and_taken_once(runs):
    runs.create({}, run_id="mine")
    with pytest.raises(PoolError, match="already"):
        runs.create({}, run_id="mine")
    for bad in ("../x", "", "a/b", "."):
        with pytest.raises(PoolError, match="no run id"):
            runs.get(bad)
    with pytest.raises(PoolError, match="no run other"):
        runs.get("other")


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'{"finished": false}'])
def test_a_damaged_journal_is_told(runs, body):
    run = runs.create({})
    (run.path / "journal.json").write_bytes(body)
    with pytest.raises(ArtifactError, match=r"journal\.json"):
        run.state()
