from __future__ import annotations

import math
import shutil
import signal
import sqlite3
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy.exc import OperationalError

from dylora_moe.errors import (
    ArtifactError,
    DatabaseUnavailableError,
    ExpertError,
    PoolError,
    StorageFullError,
)
from dylora_moe.records import Artifact
from dylora_moe.storage.database import Database
from dylora_moe.storage.pool_folder import Storage
from dylora_moe.storage.registry import SqlRegistry
from tests.storage.facts import META, event, expert, revision, skill
from tests.storage.processes import ended, start


@pytest.fixture
def registry(pool: Storage) -> SqlRegistry:
    return pool.registry


def test_a_new_pool_is_at_the_empty_revision_zero_and_keeps_its_facts(registry):
    current = registry.current()
    assert (current.number, current.parent, current.experts, current.skills) == (0, None, (), ())
    assert registry.meta() == META
    assert registry.events() == []


def test_every_record_of_a_revision_comes_back_as_it_was_given(pool):
    given = revision(0, expert(1, maturity=0.25), expert(2), note="two at once")
    committed = pool.registry.commit(given, [event(loss=math.inf, auc=[0.5, 1])])
    again = SqlRegistry(pool.root / "dylora.db").current()
    assert committed == again
    stamped = tuple(
        replace(e, created_at=f.created_at)
        for e, f in zip(given.experts, again.experts, strict=True)
    )
    assert again == replace(given, number=1, experts=stamped, created_at=again.created_at)
    assert all(e.created_at for e in again.experts)
    assert again.created_at
    assert pool.registry.events()[0].numbers == {"loss": math.inf, "auc": [0.5, 1]}


def test_numbers_that_are_not_finite_come_back(registry):
    registry.record(event(loss=math.nan, low=-math.inf))
    numbers = registry.events()[0].numbers
    assert math.isnan(numbers["loss"])
    assert numbers["low"] == -math.inf


def test_what_json_cannot_hold_is_refused_and_nothing_is_written(registry):
    with pytest.raises(PoolError, match="type object cannot be stored"):
        registry.commit(revision(0), [event(), event(bad=object())])
    assert registry.current().number == 0
    assert registry.events() == []


def test_a_commit_for_another_parent_is_refused_and_changes_nothing(registry):
    registry.commit(revision(0))
    for parent in (0, 2, None):
        with pytest.raises(PoolError, match="moved on: it is at revision 1"):
            registry.commit(revision(parent, expert(2)), [event()])
    assert [r.number for r in registry.revisions()] == [0, 1]
    assert registry.versions("expert_2") == []
    assert registry.events() == []


@pytest.mark.parametrize(
    "change",
    [
        {"storage_path": "experts/elsewhere"},
        {"lora_config": {"r": 16}},
        {"history": {}},
        {"parents": ()},
        {"skill_id": "skill_5"},
        {"files": (Artifact("experts/expert_1/v1/adapter_model.safetensors", "00" * 32),)},
    ],
)
def test_a_stored_version_never_changes(registry, change):
    first = registry.commit(revision(0))
    with pytest.raises(PoolError, match=f"stored with another .*{next(iter(change))}"):
        registry.commit(revision(1, replace(first.experts[0], **change)))
    assert registry.versions("expert_1") == list(first.experts)
    assert registry.current() == first


def test_a_name_and_maturity_change_by_a_revision_and_not_in_the_version(registry):
    first = registry.commit(revision(0))
    renamed = replace(first.experts[0], alias="other", maturity=0.9)
    second = registry.commit(revision(1, renamed))
    assert second.experts == (renamed,)
    assert registry.revision(1).experts == first.experts
    assert registry.versions("expert_1") == list(first.experts)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (revision(0, expert(1), expert(1, version=2)), "appears 2 times"),
        (revision(0, expert(1, alias="x"), expert(2, alias="x")), "appears 2 times"),
        (revision(0, expert(1, alias="base")), "reserved"),
        (revision(0, expert(1, alias="expert_2"), expert(2)), "id of another"),
        (revision(0, expert(1, maturity=1.5)), "0..1"),
        (revision(0, replace(expert(1), files=())), "no files"),
        (replace(revision(0), skills=(skill(3),)), "which this revision lacks"),
        (replace(revision(0), skills=(skill(1), skill(1))), "appears 2 times"),
    ],
)
def test_a_revision_that_contradicts_itself_is_refused(registry, broken, told):
    with pytest.raises((PoolError, ExpertError), match=told):
        registry.commit(broken)
    assert [r.number for r in registry.revisions()] == [0]


def test_numbers_of_revisions_are_never_used_twice_after_a_rollback(registry):
    registry.commit(revision(0))
    registry.commit(revision(1, expert(1), expert(2)))
    assert registry.move_to(1, event("rollback")).number == 1
    assert registry.current().number == 1
    assert registry.commit(revision(1, expert(1), expert(3))).number == 3
    assert [r.number for r in registry.revisions()] == [0, 1, 2, 3]
    assert [e.kind for e in registry.events()] == ["rollback"]


def test_moving_to_what_is_not_there_changes_nothing(registry):
    registry.commit(revision(0))
    with pytest.raises(PoolError, match="no revision 7; the pool has 0 to 1"):
        registry.move_to(7, event())
    with pytest.raises(PoolError, match="at revision 1 already"):
        registry.move_to(1, event())
    assert registry.current().number == 1
    assert registry.events() == []


def test_expert_and_version_numbers_are_never_given_twice(registry):
    assert [registry.next_expert_id() for _ in range(2)] == ["expert_1", "expert_2"]
    assert [registry.next_version("expert_1") for _ in range(2)] == [1, 2]
    registry.commit(revision(0, expert(7, version=4)))
    registry.commit(replace(revision(1), experts=(), skills=()))
    assert registry.next_expert_id() == "expert_8"
    assert registry.next_version("expert_7") == 5


def test_events_come_in_the_order_they_were_recorded_though_the_clock_goes_back(tmp_path):
    ticks = count(99, -1)
    registry = SqlRegistry.create(tmp_path / "a.db", {}, clock=lambda: f"{next(ticks):02d}")
    for n in range(6):
        registry.record(event("even" if n % 2 == 0 else "odd", n=n))
    assert [e.numbers["n"] for e in registry.events()] == [0, 1, 2, 3, 4, 5]
    assert [e.numbers["n"] for e in registry.events("odd")] == [1, 3, 5]
    assert [e.numbers["n"] for e in registry.events("even", limit=2)] == [2, 4]
    assert [e.numbers["n"] for e in registry.events(limit=1)] == [5]


def test_what_is_registered_covers_versions_manifests_and_datasets(pool):
    pool.registry.commit(revision(0))
    pool.registry.commit(replace(revision(1), experts=(), skills=(), router=None))
    assert set(pool.registry.registered("experts/expert_1")) == {
        "experts/expert_1/v1/adapter_model.safetensors",
        "experts/expert_1/v1/adapter_config.json",
    }
    assert pool.registry.registered("router/r.safetensors") == {"router/r.safetensors": "ee" * 32}
    assert set(pool.registry.registered("skills/skill_1")) == {
        "skills/skill_1/x.jsonl",
        "skills/skill_1/f.safetensors",
        "skills/skill_1/v.jsonl",
    }
    assert pool.registry.registered("experts/expert") == {}


def test_a_damaged_database_is_told_as_such(pool):
    (pool.root / "dylora.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(ArtifactError, match=r"dylora\.db is damaged"):
        SqlRegistry(pool.root / "dylora.db")


@pytest.mark.parametrize(
    ("code", "free", "told"),
    [
        (sqlite3.SQLITE_FULL, 2**30, StorageFullError),
        (sqlite3.SQLITE_IOERR_WRITE, 0, StorageFullError),
        (sqlite3.SQLITE_IOERR_WRITE, 2**30, DatabaseUnavailableError),
    ],
)
def test_a_disk_without_room_is_told_as_full(tmp_path, monkeypatch, code, free, told):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    cause = sqlite3.OperationalError("disk I/O error")
    cause.sqlite_errorcode = code
    with pytest.raises(PoolError) as caught, Database(tmp_path / "dylora.db").read():
        raise OperationalError("INSERT", None, cause)
    assert type(caught.value) is told


def test_opening_makes_no_database(tmp_path):
    with pytest.raises(PoolError, match="holds no pool"):
        SqlRegistry(tmp_path / "none.db")
    (tmp_path / "empty.db").touch()
    with pytest.raises(PoolError, match="holds no pool"):
        SqlRegistry(tmp_path / "empty.db")
    assert [p.name for p in tmp_path.iterdir()] == ["empty.db"]


_KILLED = """
import os, signal, sys
from sqlalchemy import event as sql_event
from dylora_moe.storage.registry import SqlRegistry
from tests.storage.facts import event, expert, revision
registry = SqlRegistry(sys.argv[1])
@sql_event.listens_for(registry.database.engine, "after_cursor_execute")
def kill(connection, cursor, statement, *rest):
    if statement.startswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
registry.commit(revision(1, expert(1), expert(2)), [event()])
"""


@pytest.mark.parametrize(
    "moment", ["INSERT INTO expert_versions", "UPDATE pointer", "INSERT INTO events"]
)
def test_a_commit_whose_process_is_killed_leaves_the_pool_as_it_was(pool, moment):
    before = pool.registry.commit(revision(0))
    code, _ = ended(start(_KILLED, pool.root / "dylora.db", moment))
    assert code == -signal.SIGKILL
    assert pool.registry.current() == before
    assert len(pool.registry.revisions()) == 2
    assert pool.registry.versions("expert_2") == []
    assert pool.registry.events() == []
    assert pool.registry.commit(revision(1, expert(1), expert(2))).number == 2


_COMMITS = """
import sys
from dylora_moe.errors import PoolError
from dylora_moe.storage.registry import SqlRegistry
from tests.storage.facts import expert, revision
registry = SqlRegistry(sys.argv[1])
current = registry.current().number
print("ready", flush=True)
sys.stdin.readline()
try:
    registry.commit(revision(current, expert(int(sys.argv[2]))))
    print("won")
except PoolError as error:
    print("lost:", error)
print(*(registry.next_expert_id() for _ in range(15)))
"""


def test_of_two_processes_that_commit_onto_one_parent_exactly_one_wins(pool):
    workers = [start(_COMMITS, pool.root / "dylora.db", n) for n in (1, 2)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    outputs = [ended(worker)[1].splitlines() for worker in workers]
    results = sorted(lines[0][:4] for lines in outputs)
    assert results == ["lost", "won"]
    assert "moved on: it is at revision 1" in " ".join(lines[0] for lines in outputs)
    assert len(pool.registry.revisions()) == 2
    ids = [each for lines in outputs for each in lines[1].split()]
    assert len(set(ids)) == len(ids) == 30


def test_a_reader_is_not_held_up_by_a_writer(pool):
    reader = SqlRegistry(Path(pool.root) / "dylora.db")
    with pool.registry.database.write():
        assert reader.current().number == 0
