"""Files that appear whole or not at all: fsync, staging folders, a full disk made into our error.

Knows the file system; knows nothing of pools. A staging folder is locked by the process that works
in it, so one whose owner died can be told and swept away by anybody.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dylora_moe.errors import StorageFullError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# Libraries in Rust and C++ (safetensors, torch) pass the system's error on as text only.
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "os error 28", "os error 122")


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """Turns whatever a full disk or quota raises into StorageFullError."""
    try:
        yield
    except StorageFullError:
        raise
    except Exception as error:
        if not _is_full(error):
            raise
        raise StorageFullError(
            f"the disk of {folder} is full: nothing of the pool was changed; "
            "free some space and run the same command again"
        ) from error


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(text in str(error) for text in _FULL_TEXTS)


def write_file(path: Path, body: bytes) -> None:
    """Writes a new file and waits until the disk has it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        view = memoryview(body)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, body: bytes) -> None:
    """Replaces a file of a folder that one process owns; readers see the old or the new body.

    Raises:
        StorageFullError: if the disk is full; the old file stands.
    """
    staged = path.with_name(f".{path.name}.new")
    with full_disk_told(path.parent):
        try:
            write_file(staged, body)
            os.replace(staged, path)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Waits until the disk has the folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Waits until the disk has every file and folder below, the folder itself last."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            descriptor = os.open(Path(place, name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(place))


def publish(staged: Path, target: Path) -> None:
    """Renames what was staged to its place, which is empty, a file, or an empty folder."""
    with folders_made(target.parent):
        os.replace(staged, target)
    sync_folder(target.parent)


@contextmanager
def folders_made(folder: Path) -> Iterator[None]:
    """Makes the folder and those above it for good; takes them away again if the body fails."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        for each in reversed(missing):
            each.mkdir(exist_ok=True)
            sync_folder(each.parent)
        yield
    except BaseException:
        for each in missing:
            # Somebody else may have put something there meanwhile: then it stays.
            with contextlib.suppress(OSError):
                each.rmdir()
        raise


@contextmanager
def staging(parent: Path, prefix: str = "") -> Iterator[Path]:
    """A new folder under `parent`, removed at the end with all that was not moved out of it."""
    parent.mkdir(parents=True, exist_ok=True)
    folder, descriptor = _claimed(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def sweep(parent: Path, prefix: str = "") -> None:
    """Removes the staging folders of processes that died."""
    if not parent.is_dir():
        return
    for folder in parent.iterdir():
        if not folder.name.startswith(prefix) or not folder.is_dir() or folder.is_symlink():
            continue
        descriptor = _locked(folder)
        if descriptor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def _claimed(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        folder = parent / f"{prefix}{uuid.uuid4().hex}"
        folder.mkdir()
        descriptor = _locked(folder)
        # A sweep in another process may come between making and locking it: then take a new one.
        if descriptor is not None:
            if folder.exists():
                return folder, descriptor
            os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock as long as this process lives; None if another
    one does, or the folder is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
