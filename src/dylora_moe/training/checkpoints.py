"""Checkpoints of a training run: small, whole or absent, and checked before they are trusted.

Knows folders, hashes and which is newest; what is in a checkpoint is handed in. Layout under the
run's `checkpoints/`: `<nn>-<phase>-step<nnnnnn>` while a phase runs, `<nn>-<phase>-done` after it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dylora_moe.errors import StorageFullError

MANIFEST = "manifest.json"
_STAGING = ".staging-"
_STEP = re.compile(r"step(\d+)$")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made with the first.
        identity: names the run's settings and data; checkpoints of another are not used.
        warn: is told of checkpoints that are damaged or of another run.
        keep: checkpoints of a running phase that stay.
    """

    def __init__(
        self, folder: Path, identity: str, warn: Callable[[str], None], keep: int = 2
    ) -> None:
        self.folder = folder
        self._identity = identity
        self._warn = warn
        self._keep = keep

    def save(self, phase: str, step: int, fill: Callable[[Path], None]) -> Path:
        """Writes the state at a step of a phase; older ones beyond `keep` go.

        Args:
            phase: `<nn>-<name>`.
            step: optimizer steps done.
            fill: writes the files into the folder it is given.

        Raises:
            StorageFullError: the disk takes no more; the older checkpoints stand.
        """
        path = self._write(f"{phase}-step{step:06d}", fill)
        for old in self._of(phase)[self._keep :]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def finish(self, phase: str, fill: Callable[[Path], None]) -> Path:
        """Writes what a finished phase leaves, and removes its running checkpoints."""
        path = self._write(f"{phase}-done", fill)
        for old in self._of(phase):
            shutil.rmtree(old, ignore_errors=True)
        return path

    def newest(self, phase: str) -> Path | None:
        """The newest undamaged checkpoint of a running phase."""
        return next((path for path in self._of(phase) if self._usable(path)), None)

    def finished(self, phase: str) -> Path | None:
        """What the phase left if it is finished and undamaged."""
        path = self.folder / f"{phase}-done"
        return path if path.is_dir() and self._usable(path) else None

    def clear(self) -> None:
        """Removes every checkpoint."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _of(self, phase: str) -> list[Path]:
        """Running checkpoints of a phase, newest first."""
        found = [
            path
            for path in self.folder.glob(f"{phase}-step*")
            if path.is_dir() and _STEP.search(path.name)
        ]
        return sorted(found, key=_step, reverse=True)

    def _write(self, name: str, fill: Callable[[Path], None]) -> Path:
        target = self.folder / name
        with _full_disk_told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(f"{_STAGING}*"):
                shutil.rmtree(left, ignore_errors=True)
            staged = self.folder / f"{_STAGING}{uuid.uuid4().hex}"
            try:
                staged.mkdir()
                fill(staged)
                manifest = {
                    "identity": self._identity,
                    "files": {path.name: _sha256(path) for path in sorted(staged.iterdir())},
                }
                (staged / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
                for path in (*staged.iterdir(), staged):
                    _sync(path)
                # A folder cannot be renamed onto one that holds files.
                shutil.rmtree(target, ignore_errors=True)
                os.replace(staged, target)
                _sync(self.folder)
            finally:
                shutil.rmtree(staged, ignore_errors=True)
        return target

    def _usable(self, path: Path) -> bool:
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            files: dict[str, str] = manifest["files"]
            identity = manifest["identity"]
            damaged = [name for name, digest in files.items() if _sha256(path / name) != digest]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._warn(f"checkpoint {path} is damaged ({error}): going on from the one before")
            return False
        if identity != self._identity:
            self._warn(f"checkpoint {path} is of other settings or data: starting without it")
            return False
        if damaged:
            self._warn(
                f"checkpoint {path} is damaged ({', '.join(damaged)}): going on from the one before"
            )
        return not damaged


def _step(path: Path) -> int:
    found = _STEP.search(path.name)
    return int(found.group(1)) if found else -1


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _full_disk_told(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch and safetensors pass the system's error on as text only.
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error) or "os error 28" in str(error):
            raise StorageFullError(
                f"the disk of {folder} is full, so no checkpoint can be written; free some space "
                "and run the same command again: it goes on from the last one"
            ) from error
        raise
