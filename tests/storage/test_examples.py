from __future__ import annotations

import errno
import json
import os
from dataclasses import replace

import pytest

from dylora_moe.errors import ArtifactError, DataError, PoolError, StorageFullError
from dylora_moe.records import Example, Turn, pair
from dylora_moe.storage import pool_folder
from dylora_moe.storage.artifacts import file_sha256
from tests.storage.facts import examples


def test_examples_come_back_as_they_were_with_their_line_as_origin(pool):
    given = [*examples(), Example((Turn("assistant", "plain text"),))]
    artifact = pool.examples.write("skill_1", "expert_1", 2, given, "train")
    read = pool.examples.read(artifact)
    assert read == given
    assert [e.key for e in read] == [e.key for e in given]
    assert [e.origin for e in read] == [f"{artifact.path}:{n}" for n in (1, 2, 3, 4)]


def test_a_line_carries_the_fields_people_look_for(pool):
    artifact = pool.examples.write("skill_1", "expert_1", 2, [pair("q", "ü", "json")], "train")
    body = (pool.root / artifact.path).read_text("utf-8")
    assert "ü" in body
    assert json.loads(body) == {
        "skill_id": "skill_1",
        "expert_id": "expert_1",
        "version": 2,
        "input_data": [{"role": "user", "content": "q"}],
        "output_data": "ü",
        "check": "json",
        "tests": [],
        "split": "train",
    }


def test_a_file_is_named_by_its_contents_and_written_and_indexed_once(pool):
    first = pool.examples.write("skill_1", "expert_1", 1, examples(), "train")
    again = pool.examples.write("skill_1", "expert_1", 1, examples(), "train")
    other = pool.examples.write("skill_1", "expert_1", 2, examples(), "train")
    assert first == again != other
    assert first.path == f"skills/skill_1/{first.sha256[:16]}.jsonl"
    assert file_sha256(pool.root / first.path) == first.sha256
    index = pool.examples.datasets("skill_1")
    assert [(d.file, d.expert_version, d.split, d.count) for d in index] == [
        (first, 1, "train", 3),
        (other, 2, "train", 3),
    ]
    assert pool.examples.datasets("skill_2") == []


@pytest.mark.parametrize("bad", ["../x", "a/b", "", ".hidden", "a b", "x" * 200])
def test_an_id_that_is_no_plain_name_is_refused(pool, bad):
    for ids in ((bad, "expert_1"), ("skill_1", bad)):
        with pytest.raises(PoolError, match="cannot name a file"):
            pool.examples.write(*ids, 1, examples(), "train")


def test_text_that_is_not_unicode_is_refused_with_its_origin(pool):
    row = pair("q", "half \ud800", origin="data.jsonl:7")
    with pytest.raises(DataError, match=r"data\.jsonl:7 .*not valid Unicode"):
        pool.examples.write("skill_1", "expert_1", 1, [row], "train")
    with pytest.raises(PoolError, match="no train examples"):
        pool.examples.write("skill_1", "expert_1", 1, [], "train")
    assert pool.examples.datasets() == []


def test_damaged_examples_are_noticed(pool):
    artifact = pool.examples.write("skill_1", "expert_1", 1, examples(), "train")
    path = pool.root / artifact.path
    path.write_bytes(path.read_bytes().replace(b"answer", b"answar"))
    with pytest.raises(ArtifactError, match="is damaged"):
        pool.examples.read(artifact)


def test_a_full_disk_leaves_neither_file_nor_index(pool, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageFullError):
            pool.examples.write("skill_1", "expert_1", 1, examples(), "train")
    assert not (pool.root / "skills").exists()
    assert pool.examples.datasets() == []


def test_the_waiting_room_keeps_order_and_names_and_survives_a_restart(pool):
    assert pool.examples.wait("zweite Datei/ü.jsonl", examples(3, "a")) == 3
    assert pool.examples.wait("b.jsonl", examples(2, "b")) == 5
    assert pool.examples.wait("zweite Datei/ü.jsonl", examples(2, "c")) == 7
    again = pool_folder.open(pool.root)
    assert again.examples.waiting() == [
        ("zweite Datei/ü.jsonl", examples(3, "a") + examples(2, "c")),
        ("b.jsonl", examples(2, "b")),
    ]
    assert len({e.key for _, rows in again.examples.waiting() for e in rows}) == 7


def test_rows_wait_once_however_often_they_come(pool):
    rows = [replace(e, origin=f"x:{n}") for n, e in enumerate(examples(3))]
    assert pool.examples.wait("a", [*rows, rows[0]]) == 3
    assert pool.examples.wait("a", rows) == 3
    assert pool.examples.wait("b", [*rows, pair("new", "row")]) == 4
    assert [(name, len(found)) for name, found in pool.examples.waiting()] == [("a", 3), ("b", 1)]


def test_admitted_batches_are_gone_and_may_be_admitted_again(pool):
    pool.examples.wait("a", examples(2, "a"))
    pool.examples.wait("a", examples(2, "b"))
    pool.examples.wait("c", examples(2, "c"))
    pool.examples.admit(["a"])
    pool.examples.admit(["a", "never there"])
    assert [name for name, _ in pool.examples.waiting()] == ["c"]
    assert pool.examples.wait("a", examples(2, "a")) == 4
    assert [name for name, _ in pool.examples.waiting()] == ["c", "a"]


def test_damage_in_the_waiting_room_is_noticed(pool):
    pool.examples.wait("a", examples(2))
    (file,) = (pool.root / "waiting").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ArtifactError, match="is damaged"):
        pool.examples.waiting()


def test_what_is_kept_under_a_name_takes_the_place_of_what_waited_there(pool):
    pool.examples.wait("a", examples(2, "a"))
    pool.examples.wait("a", examples(2, "b"))
    pool.examples.wait("c", examples(1, "c"))
    kept = [*examples(2, "b"), *examples(1, "d"), *examples(1, "d")]
    pool.examples.keep("a", kept)
    assert pool.examples.waiting() == [("a", kept[:3]), ("c", examples(1, "c"))]
    pool.examples.keep("a", kept)
    assert [(name, len(rows)) for name, rows in pool.examples.waiting()] == [("a", 3), ("c", 1)]
    pool.examples.keep("a", [])
    pool.examples.keep("never there", [])
    assert [name for name, _ in pool.examples.waiting()] == ["c"]
