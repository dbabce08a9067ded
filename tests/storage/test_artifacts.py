from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from dylora_moe.errors import ArtifactError, PoolError, StorageFullError
from dylora_moe.records import Artifact
from dylora_moe.storage import artifacts as artifacts_module
from dylora_moe.storage import durable
from dylora_moe.storage.artifacts import FileArtifacts
from tests.storage.processes import ended, start


@pytest.fixture
def store(tmp_path: Path) -> FileArtifacts:
    return FileArtifacts(tmp_path)


def staged_adapter(folder: Path, weights: bytes = b"weights") -> Path:
    adapter = folder / "adapter"
    (adapter / "nested").mkdir(parents=True)
    (adapter / "adapter_config.json").write_bytes(b"{}")
    (adapter / "adapter_model.safetensors").write_bytes(weights)
    (adapter / "nested" / "README.md").write_bytes(b"card")
    return adapter


def tree(root: Path) -> dict[str, bytes | None]:
    """Everything below but the staging folder itself."""
    found = {
        each.relative_to(root).as_posix(): each.read_bytes() if each.is_file() else None
        for each in root.rglob("*")
    }
    found.pop(".staging", None)
    return found


def failing(monkeypatch: pytest.MonkeyPatch, name: str, at: int, code: int = errno.ENOSPC) -> None:
    """Makes the `at`-th call of `os.<name>` from now on, and every later one, fail."""
    real, calls = getattr(os, name), []

    def call(*arguments):
        calls.append(arguments)
        if len(calls) >= at:
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    monkeypatch.setattr(os, name, call)


def test_a_file_and_a_folder_come_back_as_they_were_written(store):
    artifact = store.put_bytes("router/r.bin", b"abc")
    assert store.open(artifact).read_bytes() == b"abc"
    with store.stage() as folder:
        files = store.put_folder("experts/expert_1/v1", staged_adapter(folder))
    assert [each.path.removeprefix("experts/expert_1/v1/") for each in files] == [
        "adapter_model.safetensors",
        "adapter_config.json",
        "nested/README.md",
    ]
    assert [store.open(each).read_bytes() for each in files] == [b"weights", b"{}", b"card"]
    assert list((store.root / ".staging").iterdir()) == []


def test_a_staging_folder_itself_can_become_the_artifact(store):
    with store.stage() as folder:
        (folder / "a.safetensors").write_bytes(b"w")
        (only,) = store.put_folder("experts/expert_1/v1", folder)
    assert store.open(only).read_bytes() == b"w"


def test_writing_the_same_twice_gives_the_same_and_changes_nothing(store):
    first = store.put_bytes("a/b", b"abc")
    stamp = store.open(first).stat()
    assert store.put_bytes("a/b", b"abc") == first
    assert store.open(first).stat() == stamp
    with store.stage() as folder:
        files = store.put_folder("e/v1", staged_adapter(folder))
    with store.stage() as folder:
        assert store.put_folder("e/v1", staged_adapter(folder)) == files


@pytest.mark.parametrize("flip", [0, 500, -1])
def test_a_flipped_bit_is_noticed_and_told_with_a_remedy(store, flip):
    artifact = store.put_bytes("a.bin", bytes(1000))
    path = store.open(artifact)
    body = bytearray(path.read_bytes())
    body[flip] ^= 1
    path.write_bytes(body)
    with pytest.raises(ArtifactError) as caught:
        store.open(artifact)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), "damaged", artifact.sha256[:12], "dylora experts rollback"):
        assert part in message


@pytest.mark.parametrize(
    ("version", "told"),
    [
        (1, "expected; `dylora experts remove POOL expert_1`, then learn or import it again"),
        (2, "expected; `dylora experts rollback POOL expert_1`, or `dylora experts remove POOL "),
    ],
)
def test_a_damaged_expert_is_told_with_what_brings_it_back(store, version, told):
    artifact = store.put_bytes(f"experts/expert_1/v{version}/adapter_model.safetensors", b"abc")
    (store.root / artifact.path).write_bytes(b"abd")
    with pytest.raises(ArtifactError) as caught:
        store.open(artifact)
    assert told in str(caught.value)


def test_a_truncated_and_a_missing_file_are_noticed(store):
    artifact = store.put_bytes("a.bin", b"abc")
    (store.root / "a.bin").write_bytes(b"ab")
    with pytest.raises(ArtifactError, match="is damaged: its 2 bytes"):
        store.open(artifact)
    (store.root / "a.bin").unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        store.open(artifact)


def test_a_file_is_hashed_once_and_again_when_it_changed(store, monkeypatch):
    hashed = []
    real = artifacts_module.file_sha256
    monkeypatch.setattr(
        artifacts_module, "file_sha256", lambda path: hashed.append(path) or real(path)
    )
    artifact = store.put_bytes("a.bin", b"abc")
    for _ in range(3):
        store.open(artifact)
    assert len(hashed) == 1
    with pytest.raises(ArtifactError):
        store.open(Artifact("a.bin", "00" * 32))
    os.utime(store.root / "a.bin", (1, 1))
    store.open(artifact)
    assert len(hashed) == 3


@pytest.mark.parametrize(
    "path",
    ["../a", "a/../../b", "/etc/passwd", "", "a//b", ".", "a\x00b", "a\\b", ".staging/x", ".lock"],
)
def test_no_path_leaves_the_pool(store, path):
    with pytest.raises(PoolError):
        store.put_bytes(path, b"abc")
    with pytest.raises(PoolError):
        store.open(Artifact(path, "00" * 32))
    with store.stage() as folder, pytest.raises(PoolError):
        store.put_folder(path, staged_adapter(folder))


def test_no_symbolic_link_leads_out_of_the_pool(tmp_path):
    (tmp_path / "outside").mkdir()
    store = FileArtifacts(tmp_path / "pool")
    store.root.mkdir()
    (store.root / "experts").symlink_to(tmp_path / "outside")
    with pytest.raises(PoolError, match="outside"):
        store.put_bytes("experts/a", b"abc")
    with store.stage() as folder:
        (folder / "link").symlink_to(tmp_path)
        with pytest.raises(PoolError, match="symbolic link"):
            store.put_folder("e/v1", folder)


def test_only_what_was_staged_here_can_be_moved_in(store, tmp_path_factory):
    other = staged_adapter(tmp_path_factory.mktemp("other"))
    with pytest.raises(PoolError, match="no staging folder"):
        store.put_folder("e/v1", other)
    assert other.is_dir()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_changes_nothing_and_leaves_nothing(store, monkeypatch, call, code):
    store.put_bytes("a.bin", b"abc")
    before = tree(store.root)
    with monkeypatch.context() as patch:
        failing(patch, call, at=1, code=code)
        with pytest.raises(StorageFullError, match="is full: nothing of the pool was changed"):
            store.put_bytes("new/b.bin", b"abc")
        if call == "fsync":
            with store.stage() as folder, pytest.raises(StorageFullError):
                store.put_folder("e/v1", staged_adapter(folder))
    assert tree(store.root) == before
    store.put_bytes("new/b.bin", b"abc")


@pytest.mark.parametrize("name", ["fsync", "replace", "write"])
def test_wherever_writing_fails_a_file_is_there_whole_or_not_at_all(store, monkeypatch, name):
    for at in range(1, 9):
        with monkeypatch.context() as patch:
            failing(patch, name, at)
            try:
                store.put_bytes(f"deep/{at}/b.bin", b"abc")
            except StorageFullError:
                (store.root / f"deep/{at}/b.bin").unlink(missing_ok=True)
            with store.stage() as folder:
                adapter = staged_adapter(folder)
                try:
                    store.put_folder(f"e/v{at}", adapter)
                except StorageFullError:
                    moved = store.root / f"e/v{at}"
                    assert not moved.exists() or len(list(moved.rglob("*"))) == 4
    bodies = {body for path, body in tree(store.root).items() if path.endswith("b.bin")}
    assert bodies <= {b"abc"}
    assert list((store.root / ".staging").iterdir()) == []


def test_a_full_disk_met_by_a_library_in_a_staging_folder_is_told_the_same_way(store):
    with pytest.raises(StorageFullError), store.stage():
        raise RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)")
    with pytest.raises(ValueError, match="something else"), store.stage():
        raise ValueError("something else")
    assert tree(store.root) == {}


_STAGES = """
import os, signal, sys
from pathlib import Path
from dylora_moe.storage import artifacts, durable
from dylora_moe.storage.artifacts import FileArtifacts
store = FileArtifacts(Path(sys.argv[1]))
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "alive":
    with store.stage() as folder:
        print(folder, flush=True)
        sys.stdin.readline()
else:
    os.replace = die
    store.put_bytes("a/b.bin", b"abc")
"""


def test_killed_between_staging_and_renaming_nothing_is_there_and_it_is_swept_later(store):
    code, _ = ended(start(_STAGES, store.root, "dies"))
    assert code == -signal.SIGKILL
    assert len(list((store.root / ".staging").iterdir())) == 1
    assert not (store.root / "a" / "b.bin").exists()
    FileArtifacts(store.root)
    assert list((store.root / ".staging").iterdir()) == []


def test_a_staging_folder_of_a_living_process_is_not_swept(store):
    worker = start(_STAGES, store.root, "alive")
    folder = Path(worker.stdout.readline().strip())
    FileArtifacts(store.root)
    assert folder.is_dir()
    assert ended(worker, "go\n") == (0, "")
    assert not folder.exists()


def test_what_an_interrupted_run_left_is_replaced_and_what_is_in_use_is_not(tmp_path):
    registered: dict[str, str] = {}
    store = FileArtifacts(tmp_path, lambda path: registered)
    store.put_bytes("r.bin", b"left over")
    artifact = store.put_bytes("r.bin", b"promoted")
    registered["r.bin"] = artifact.sha256
    with pytest.raises(PoolError, match="stored files never change"):
        store.put_bytes("r.bin", b"other")
    assert store.open(artifact).read_bytes() == b"promoted"
    registered.clear()
    for weights in (b"left over", b"promoted"):
        with store.stage() as folder:
            files = store.put_folder("e/v1", staged_adapter(folder, weights))
    registered.update((each.path, each.sha256) for each in files)
    with store.stage() as folder, pytest.raises(PoolError, match="never change"):
        store.put_folder("e/v1", staged_adapter(folder, b"other"))
    assert store.open(files[0]).read_bytes() == b"promoted"


def test_a_damaged_file_in_use_is_healed_by_writing_the_right_one(tmp_path):
    registered: dict[str, str] = {}
    store = FileArtifacts(tmp_path, lambda path: registered)
    artifact = store.put_bytes("r.bin", b"right")
    registered["r.bin"] = artifact.sha256
    (tmp_path / "r.bin").write_bytes(b"wrong")
    assert store.put_bytes("r.bin", b"right") == artifact
    assert store.open(artifact).read_bytes() == b"right"


def test_replacing_a_file_in_place_keeps_the_old_one_when_the_disk_is_full(tmp_path, monkeypatch):
    durable.replace_file(tmp_path / "j", b"old")
    failing(monkeypatch, "write", 1)
    with pytest.raises(StorageFullError):
        durable.replace_file(tmp_path / "j", b"new")
    assert tree(tmp_path) == {"j": b"old"}


def test_a_staging_folder_swept_before_it_was_locked_is_made_again(store, monkeypatch):
    real, calls = durable._locked, []

    def swept_at_first(folder: Path) -> int | None:
        descriptor = real(folder)
        calls.append(folder)
        if len(calls) == 1:
            folder.rmdir()
        return descriptor

    monkeypatch.setattr(durable, "_locked", swept_at_first)
    with store.stage() as folder:
        assert folder.is_dir()
    assert len(calls) == 2
