"""The files of a pool: written whole or not at all, known by their SHA-256, checked when opened.

Knows paths and hashes; knows nothing of what the files hold, nor who refers to them (that is asked
through `registered`).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from dylora_moe.errors import ArtifactError, PoolError
from dylora_moe.records import Artifact
from dylora_moe.storage.durable import (
    full_disk_told,
    publish,
    staging,
    sweep,
    sync_tree,
    write_file,
)

STAGING = ".staging"
_PART = re.compile(r"[^\x00-\x1f/\\:]{1,200}")
_WEIGHTS = ".safetensors"
_EXPERT = re.compile(r"experts/(?P<expert>[^/]+)/v(?P<version>[0-9]+)/")


class FileArtifacts:
    """Implements `ports.ArtifactStore` in a folder.

    A path that stands already is kept if the new body is the same. With another body it is
    replaced only where nothing refers to it (an interrupted run left it) or where the new body is
    the registered one (the stored copy is damaged); anything else would change the past.
    """

    def __init__(
        self, root: Path, registered: Callable[[str], Mapping[str, str]] | None = None
    ) -> None:
        """Opens the store and removes the staging folders of processes that died.

        Args:
            root: the pool's folder.
            registered: the files at or below a path that the registry names, with their SHA-256;
                without it nothing is ever replaced.
        """
        self._root = root.resolve()
        self._registered = registered
        self._verified: dict[str, tuple[int, int, str]] = {}
        sweep(self._root / STAGING)

    @property
    def root(self) -> Path:
        return self._root

    def put_bytes(self, path: str, body: bytes) -> Artifact:
        """Writes one file.

        Raises:
            PoolError: if the path leaves the pool, or holds another body that is in use.
            StorageFullError: if the disk is full; nothing changed.
        """
        target = self._inside(path)
        artifact = Artifact(path, hashlib.sha256(body).hexdigest())
        if _holds(target, artifact.sha256):
            return artifact
        if target.exists():
            self._check_replaceable(path, (artifact,))
        with self.stage() as folder:
            write_file(folder / "body", body)
            publish(folder / "body", target)
        return artifact

    @contextmanager
    def stage(self) -> Iterator[Path]:
        """A temporary folder on the pool's file system, removed at the end.

        Raises:
            StorageFullError: if the disk fills up while the body writes into it.
        """
        with full_disk_told(self._root), staging(self._root / STAGING) as folder:
            yield folder

    def put_folder(self, path: str, staged: Path) -> tuple[Artifact, ...]:
        """Moves a folder that lies under a staging folder to `path`.

        Returns:
            Every file with its hash, `.safetensors` first, then by name.

        Raises:
            PoolError: if the path leaves the pool, or holds other files that are in use.
            StorageFullError: if the disk is full; nothing changed.
        """
        target = self._inside(path)
        if (self._root / STAGING) not in staged.resolve().parents:
            raise PoolError(f"{staged} is no staging folder of this pool; write it under stage()")
        artifacts = tuple(
            Artifact(f"{path}/{name}", file_sha256(self._inside(f"{path}/{name}", staged / name)))
            for name in _files(staged)
        )
        if not artifacts:
            raise PoolError(f"{path} would be an empty folder; write its files first")
        with full_disk_told(self._root):
            sync_tree(staged)
            if target.exists():
                if self._is_whole(target, artifacts):
                    shutil.rmtree(staged)
                    return artifacts
                self._check_replaceable(path, artifacts)
                with self.stage() as old:
                    os.replace(target, old / "retired")
                    publish(staged, target)
            else:
                publish(staged, target)
        return artifacts

    def open(self, artifact: Artifact) -> Path:
        """The file's absolute path after checking its hash.

        A file is hashed once per process and again whenever its size or time changed.

        Raises:
            ArtifactError: if it is missing, truncated or damaged.
        """
        path = self._inside(artifact.path)
        try:
            status = path.stat()
            seen = (status.st_size, status.st_mtime_ns, artifact.sha256)
            if self._verified.get(artifact.path) == seen:
                return path
            actual = file_sha256(path)
        except OSError as error:
            fault = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
            raise ArtifactError(
                f"{path} {fault} (sha256 {artifact.sha256[:12]} expected); {_remedy(artifact.path)}"
            ) from error
        if actual != artifact.sha256:
            raise ArtifactError(
                f"{path} is damaged: its {status.st_size} bytes have sha256 {actual[:12]}, "
                f"{artifact.sha256[:12]} expected; {_remedy(artifact.path)}"
            )
        self._verified[artifact.path] = seen
        return path

    def remove(self, path: str) -> None:
        """Takes a file away that nothing refers to any more; none there is no error."""
        target = self._inside(path)
        if self._registered is not None and self._registered(path):
            raise PoolError(f"{path} belongs to a revision of the pool and is kept")
        target.unlink(missing_ok=True)

    def _inside(self, path: str, staged: Path | None = None) -> Path:
        """The place of a relative path (or `staged`, once the path it will have is checked)."""
        parts = path.split("/")
        if any(not _PART.fullmatch(part) or part in (".", "..") for part in parts):
            raise PoolError(f'"{path}" is no path inside the pool; use plain relative names')
        if parts[0].startswith(".") or not self._stays_inside(PurePosixPath(path)):
            raise PoolError(f'"{path}" lies outside what the pool keeps; use plain relative names')
        return staged if staged is not None else self._root / path

    def _stays_inside(self, path: PurePosixPath) -> bool:
        # A symbolic link put into the pool must not lead out of it.
        return (self._root / path).resolve().is_relative_to(self._root)

    def _is_whole(self, target: Path, artifacts: tuple[Artifact, ...]) -> bool:
        if not target.is_dir():
            return False
        names = {each.path for each in artifacts}
        prefix = target.relative_to(self._root).as_posix()
        return {f"{prefix}/{name}" for name in _files(target)} == names and all(
            _holds(self._root / each.path, each.sha256) for each in artifacts
        )

    def _check_replaceable(self, path: str, artifacts: tuple[Artifact, ...]) -> None:
        new = {each.path: each.sha256 for each in artifacts}
        if self._registered is not None and all(
            new.get(name) == sha256 for name, sha256 in self._registered(path).items()
        ):
            return
        raise PoolError(
            f"{path} exists with other contents, and stored files never change; "
            "write a new version instead"
        )


def _remedy(path: str) -> str:
    """What helps where a file is damaged: an expert's go with its version, others may belong to
    every revision."""
    found = _EXPERT.match(path)
    if found is None:
        return (
            "restore it from a copy of the pool, or, if it came with the last step, take that back "
            "with `dylora experts rollback POOL`"
        )
    expert, version = found["expert"], int(found["version"])
    without = f"`dylora experts remove POOL {expert}`, then learn or import it again"
    return f"`dylora experts rollback POOL {expert}`, or {without}" if version > 1 else without


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _holds(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


def _files(folder: Path) -> list[str]:
    """Relative names of the files below, weights first."""
    found = []
    for each in folder.rglob("*"):
        if each.is_symlink():
            raise PoolError(f"{each} is a symbolic link; a pool keeps the files themselves")
        if each.is_file():
            found.append(each.relative_to(folder).as_posix())
    return sorted(found, key=lambda name: (not name.endswith(_WEIGHTS), name))
