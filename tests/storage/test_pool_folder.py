from __future__ import annotations

import errno
import json
import os
import signal
import sys
from dataclasses import replace

import pytest

from dylora_moe.errors import (
    ArtifactError,
    DyLoRAError,
    MissingExtraError,
    PoolError,
    StorageFullError,
)
from dylora_moe.storage import pool_folder
from tests.storage.facts import META, event, examples, expert, revision
from tests.storage.processes import ended, start


def test_a_pool_closed_and_opened_holds_the_same(pool):
    pool.registry.commit(revision(0, expert(1), expert(2)), [event(a=1)])
    artifact = pool.examples.write("skill_1", "expert_1", 1, examples(), "train")
    run = pool.runs.create({"phase": "seed"})
    pool.close()
    again = pool_folder.open(pool.root)
    assert again.registry.meta() == META
    assert again.registry.current() == pool.registry.current()
    assert again.registry.events() == pool.registry.events()
    assert again.examples.read(artifact) == examples()
    assert [each.state() for each in again.runs.unfinished()] == [run.state()]


def test_a_pool_can_be_moved(pool, tmp_path):
    artifact = pool.examples.write("skill_1", "expert_1", 1, examples(), "train")
    pool.close()
    (tmp_path / "pool").rename(tmp_path / "elsewhere")
    assert pool_folder.open(tmp_path / "elsewhere").examples.read(artifact) == examples()


def test_an_empty_folder_may_become_a_pool_and_no_other(tmp_path):
    (tmp_path / "empty").mkdir()
    pool_folder.create(tmp_path / "empty", META)
    with pytest.raises(PoolError, match="is a pool already"):
        pool_folder.create(tmp_path / "empty", META)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(PoolError, match="not empty"):
        pool_folder.create(tmp_path / "full", META)
    with pytest.raises(PoolError, match="is a file"):
        pool_folder.create(tmp_path / "full" / "a", META)
    assert [each.name for each in (tmp_path / "full").iterdir()] == ["a"]


def test_what_is_no_pool_is_refused_and_untouched(tmp_path):
    with pytest.raises(PoolError, match=r"no pool at .*dylora init"):
        pool_folder.open(tmp_path / "none")
    with pytest.raises(PoolError, match="is not a pool"):
        pool_folder.open(tmp_path)
    (tmp_path / "pool.json").write_text("{}")
    with pytest.raises(ArtifactError, match="cannot be read"):
        pool_folder.open(tmp_path)
    (tmp_path / "pool.json").write_text(json.dumps({"format": 2, "database": "dylora.db"}))
    with pytest.raises(PoolError, match="layout 2, newer"):
        pool_folder.open(tmp_path)
    (tmp_path / "pool.json").write_text(json.dumps({"format": 1, "database": "dylora.db"}))
    with pytest.raises(PoolError, match="holds no pool"):
        pool_folder.open(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["pool.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, DyLoRAError, ValueError])
def test_a_creation_that_is_interrupted_leaves_nothing(tmp_path, error):
    def fill(storage):
        storage.artifacts.put_bytes("router/prompts.bin", b"abc")
        assert not (tmp_path / "new" / "pool").exists()
        raise error

    with pytest.raises(error):
        pool_folder.create(tmp_path / "new" / "pool", META, fill=fill)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["write", "fsync", "replace"])
def test_a_creation_on_a_full_disk_leaves_nothing(tmp_path, monkeypatch, name):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        with pytest.raises(StorageFullError):
            pool_folder.create(tmp_path / "pool", META)
    assert list(tmp_path.iterdir()) == []


def test_what_creation_filled_in_is_there_from_the_start(tmp_path):
    def fill(storage):
        router = storage.artifacts.put_bytes("router/prompts.bin", b"abc")
        storage.registry.record(event(path=router.path))

    storage = pool_folder.create(tmp_path / "pool", META, fill=fill)
    assert (storage.root / "router" / "prompts.bin").read_bytes() == b"abc"
    assert len(storage.registry.events()) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["pool"]


_KILLED = """
import os, signal, sys
from dylora_moe.storage import pool_folder
pool_folder.create(sys.argv[1], {}, fill=lambda storage: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_creation_that_is_killed_makes_no_pool_and_the_next_one_sweeps_up(tmp_path):
    code, _ = ended(start(_KILLED, tmp_path / "pool"))
    assert code == -signal.SIGKILL
    assert not (tmp_path / "pool").exists()
    pool_folder.create(tmp_path / "pool", META)
    assert [each.name for each in tmp_path.iterdir()] == ["pool"]


def test_an_orphan_of_an_interrupted_run_can_be_written_again_but_a_promoted_one_cannot(pool):
    folder = expert(1).storage_path
    for weights in (b"left over", b"promoted"):
        with pool.artifacts.stage() as staged:
            (staged / "adapter_model.safetensors").write_bytes(weights)
            files = pool.artifacts.put_folder(folder, staged)
    pool.registry.commit(revision(0, replace(expert(1), files=files)))
    with pool.artifacts.stage() as staged:
        (staged / "adapter_model.safetensors").write_bytes(b"other")
        with pytest.raises(PoolError, match="never change"):
            pool.artifacts.put_folder(folder, staged)
    assert pool.artifacts.open(files[0]).read_bytes() == b"promoted"


@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "postgresql", "postgres"])
def test_a_server_whose_driver_is_missing_names_the_extra(scheme, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r'psycopg.*pip install "dylora-moe\[postgresql\]"'):
        pool_folder.create(tmp_path / "pool", META, url=f"{scheme}://me@host/db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["me@host", "my server://host/db", "vibes://host/db"])
def test_a_database_url_that_means_nothing_is_refused_with_an_example(url, tmp_path):
    with pytest.raises(PoolError, match=r"postgresql\+psycopg://user@host/database") as caught:
        pool_folder.check_free(tmp_path / "pool", url)
    assert "\n" not in str(caught.value)


def test_a_database_that_holds_a_pool_is_refused_before_anything_is_done(tmp_path):
    url = f"sqlite:///{tmp_path / 'server.db'}"
    pool_folder.check_free(tmp_path / "pool", url)
    assert list(tmp_path.iterdir()) == []
    pool_folder.create(tmp_path / "pool", META, url=url).close()
    with pytest.raises(PoolError, match="already holds a pool"):
        pool_folder.check_free(tmp_path / "second", url)


def test_a_database_url_with_a_password_is_not_kept(tmp_path):
    with pytest.raises(PoolError, match="no password"):
        pool_folder.create(tmp_path / "pool", META, url="postgresql+psycopg://me:secret@host/db")
    with pytest.raises(PoolError, match="no password"):
        pool_folder.check_free(tmp_path / "pool", "postgresql+psycopg://me@host/db?password=secret")
    assert list(tmp_path.iterdir()) == []


def test_a_registry_may_live_in_another_database_than_the_folders(tmp_path):
    url = f"sqlite:///{tmp_path / 'server.db'}"
    storage = pool_folder.create(tmp_path / "pool", META, url=url)
    storage.registry.commit(revision(0))
    assert not (tmp_path / "pool" / "dylora.db").exists()
    assert pool_folder.open(tmp_path / "pool").registry.current().number == 1
    with pytest.raises(PoolError, match="already holds a pool"):
        pool_folder.create(tmp_path / "second", META, url=url)
    assert storage.registry.current().number == 1


def test_an_interrupted_creation_leaves_the_server_free_for_the_next(tmp_path):
    url = f"sqlite:///{tmp_path / 'server.db'}"
    with pytest.raises(KeyboardInterrupt):
        pool_folder.create(tmp_path / "pool", META, url=url, fill=_interrupt)
    assert pool_folder.create(tmp_path / "pool", META, url=url).registry.current().number == 0


def _interrupt(_storage):
    raise KeyboardInterrupt
