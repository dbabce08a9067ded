from __future__ import annotations

import errno
from pathlib import Path

import pytest

from dylora_moe.errors import StorageFullError
from dylora_moe.training.checkpoints import MANIFEST, Checkpoints


def made(folder: Path, identity: str = "run") -> tuple[Checkpoints, list[str]]:
    told: list[str] = []
    return Checkpoints(folder / "checkpoints", identity, told.append), told


def filled(text: str) -> object:
    return lambda folder: (folder / "a.txt").write_text(text)


def test_the_newest_counts_and_old_ones_go(tmp_path: Path) -> None:
    store, _ = made(tmp_path)
    assert store.newest("00-a") is None
    for step in (9, 10, 11):
        store.save("00-a", step, filled(str(step)))  # type: ignore[arg-type]
    store.save("01-b", 1, filled("b"))  # type: ignore[arg-type]
    newest = store.newest("00-a")
    assert newest is not None
    assert (newest / "a.txt").read_text() == "11"
    assert len(list(store.folder.glob("00-a-*"))) == 2


@pytest.mark.parametrize("damage", ["changed", "truncated", "missing", "manifest"])
def test_a_damaged_one_is_noticed_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    store, told = made(tmp_path)
    store.save("00-a", 1, filled("first"))  # type: ignore[arg-type]
    path = store.save("00-a", 2, filled("second"))  # type: ignore[arg-type]
    file = path / "a.txt"
    if damage == "changed":
        file.write_text("secind")
    elif damage == "truncated":
        file.write_text("")
    elif damage == "missing":
        file.unlink()
    else:
        (path / MANIFEST).write_text("{")
    newest = store.newest("00-a")
    assert newest is not None
    assert (newest / "a.txt").read_text() == "first"
    assert len(told) == 1
    assert "damaged" in told[0]


def test_one_that_failed_half_way_is_not_there(tmp_path: Path) -> None:
    store, _ = made(tmp_path)
    store.save("00-a", 1, filled("first"))  # type: ignore[arg-type]

    def broken(folder: Path) -> None:
        (folder / "a.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.save("00-a", 2, broken)
    assert [path.name for path in store.folder.iterdir()] == ["00-a-step000001"]


def test_a_full_disk_is_told_and_the_old_one_stands(tmp_path: Path) -> None:
    store, _ = made(tmp_path)
    store.save("00-a", 1, filled("first"))  # type: ignore[arg-type]

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageFullError, match="free some space"):
        store.save("00-a", 2, full)
    assert store.newest("00-a") is not None


def test_a_finished_phase_leaves_one_folder(tmp_path: Path) -> None:
    store, _ = made(tmp_path)
    store.save("00-a", 1, filled("running"))  # type: ignore[arg-type]
    store.finish("00-a", filled("done"))  # type: ignore[arg-type]
    assert store.newest("00-a") is None
    finished = store.finished("00-a")
    assert finished is not None
    assert (finished / "a.txt").read_text() == "done"
    assert store.finished("01-b") is None


def test_another_runs_checkpoint_is_not_taken(tmp_path: Path) -> None:
    made(tmp_path)[0].save("00-a", 1, filled("x"))  # type: ignore[arg-type]
    store, told = made(tmp_path, identity="other")
    assert store.newest("00-a") is None
    assert "other settings or data" in told[0]
