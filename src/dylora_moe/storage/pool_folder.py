"""A pool's folder: made whole or not at all, opened with everything that is stored in it.

    pool.json        which database it belongs to
    dylora.db        the registry (unless it is on a server)
    experts/ skills/ waiting/ ...   artifacts
    inbox/           prompts that no skill claimed
    runs/            unfinished and finished runs
    jobs/            what a server ran, and what came of it
    .lock .staging/  the learner's lock; what is being written

Knows how the parts of this room fit together; knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dylora_moe.errors import ArtifactError, PoolError
from dylora_moe.storage.artifacts import STAGING, FileArtifacts
from dylora_moe.storage.clock import Clock, now
from dylora_moe.storage.database import AS_IT_IS_WRITTEN, Database, read_url
from dylora_moe.storage.durable import (
    folders_made,
    full_disk_told,
    publish,
    staging,
    sweep,
    sync_tree,
    write_file,
)
from dylora_moe.storage.examples import JsonlExamples
from dylora_moe.storage.inbox import FileInbox
from dylora_moe.storage.lock import FileLock
from dylora_moe.storage.migrate import drop
from dylora_moe.storage.registry import SqlRegistry, holds_pool
from dylora_moe.storage.runs import RunFolders

MARKER = "pool.json"
DATABASE = "dylora.db"
FORMAT = 1
"""Layout of the folder; the database's schema has a number of its own."""


@dataclass(frozen=True)
class Storage:
    """Everything stored of one pool."""

    root: Path
    registry: SqlRegistry
    artifacts: FileArtifacts
    examples: JsonlExamples
    lock: FileLock
    runs: RunFolders
    inbox: FileInbox
    jobs: RunFolders

    def close(self) -> None:
        """Gives back connections to the database."""
        self.registry.close()


def create(
    path: str | Path,
    meta: Mapping[str, Any],
    *,
    url: str | None = None,
    fill: Callable[[Storage], None] | None = None,
    clock: Clock = now,
) -> Storage:
    """Makes a pool and opens it.

    Args:
        path: a folder that does not exist or is empty.
        meta: the pool's fixed facts, JSON values.
        url: SQLAlchemy URL of a database of its own on a server, without a password (drivers
            take it from PGPASSWORD or ~/.pgpass); None for SQLite in the folder.
        fill: writes the pool's first files and revisions while it is still hidden. Whatever it
            raises, Ctrl-C too, no pool is left behind.

    Raises:
        PoolError: if the folder is not empty, or the database holds a pool or cannot be used.
        MissingExtraError: if the database's driver is not installed.
        StorageFullError: if the disk is full.
    """
    root = Path(path).absolute()
    check_free(root, url)
    prefix = f".{root.name}.creating-"
    sweep(root.parent, prefix)
    with (
        full_disk_told(root.parent),
        folders_made(root.parent),
        staging(root.parent, prefix) as folder,
        _registry_made(folder, meta, url, clock) as registry,
    ):
        if fill is not None:
            fill(_wired(folder, registry, clock))
        registry.close()
        sync_tree(folder)
        # Again: somebody may have put something there while `fill` was at work.
        _refuse_occupied(root)
        publish(folder, root)
    return open(root, clock=clock)


def check_free(path: str | Path, url: str | None = None) -> None:
    """Refuses a folder and a database that no pool can be made in, before anything costly is done
    for it.

    Raises:
        PoolError: if the folder is a pool, a file, or not empty; if the database's URL is
            malformed or holds a password, or the database cannot be reached or holds a pool.
        MissingExtraError: if the database's driver is not installed.
    """
    _refuse_occupied(Path(path).absolute())
    if url is not None:
        _refuse_unusable(url)


def open(path: str | Path, *, clock: Clock = now) -> Storage:  # noqa: A001 (pool_folder.open)
    """Opens a pool; brings an older schema up to date and sweeps what dead processes left.

    Raises:
        PoolError: if there is no pool, or a newer version of this package wrote it.
        ArtifactError: if the database is damaged.
    """
    root = Path(path).absolute()
    url = _database_of(root)
    return _wired(root, SqlRegistry(url or root / DATABASE, clock), clock)


@contextmanager
def _registry_made(
    folder: Path, meta: Mapping[str, Any], url: str | None, clock: Clock
) -> Iterator[SqlRegistry]:
    """A new registry and the marker that names it; if the body fails, no server keeps it."""
    marker = {"format": FORMAT, "database": url or DATABASE}
    write_file(folder / MARKER, json.dumps(marker, indent=1).encode() + b"\n")
    registry = SqlRegistry.create(url or folder / DATABASE, meta, clock)
    try:
        yield registry
    except BaseException:
        if url is not None:
            drop(registry.database)
        raise
    finally:
        registry.close()


def _wired(root: Path, registry: SqlRegistry, clock: Clock) -> Storage:
    artifacts = FileArtifacts(root, registry.registered)
    return Storage(
        root=root,
        registry=registry,
        artifacts=artifacts,
        examples=JsonlExamples(artifacts, registry.database, clock),
        lock=FileLock(root, clock),
        runs=RunFolders(root / "runs", root / STAGING, clock),
        inbox=FileInbox(artifacts, clock),
        jobs=RunFolders(root / "jobs", root / STAGING, clock),
    )


def _refuse_occupied(root: Path) -> None:
    if (root / MARKER).exists():
        raise PoolError(f"{root} is a pool already; open it, or choose another folder")
    if root.is_dir() and any(root.iterdir()):
        raise PoolError(f"{root} exists and is not empty; choose another folder")
    if root.exists() and not root.is_dir():
        raise PoolError(f"{root} is a file; choose another name for the pool's folder")


def _refuse_unusable(url: str) -> None:
    if "://" not in url:
        raise PoolError(f'"{url}" is no database URL; {AS_IT_IS_WRITTEN}')
    parsed = read_url(url)
    if parsed.password is not None or "password" in parsed.query:
        raise PoolError(
            "the database URL is kept in the pool's folder and must hold no password; "
            "set PGPASSWORD or use ~/.pgpass"
        )
    database = Database(url)
    # SQLite makes a missing file by opening it.
    if database.is_file and not Path(str(database.url.database)).is_file():
        return
    try:
        taken = holds_pool(database)
    finally:
        database.close()
    if taken:
        raise PoolError(
            f"{database.name} already holds a pool; name another database, or remove it"
        )


def _database_of(root: Path) -> str | None:
    """The URL of the pool's database; None for the file in its folder."""
    marker = root / MARKER
    if not root.is_dir():
        raise PoolError(f"there is no pool at {root}; make one with: dylora init {root}")
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
        layout, database = int(found["format"]), str(found["database"])
    except FileNotFoundError as error:
        raise PoolError(
            f"{root} is not a pool (it has no {MARKER}); make one with: dylora init POOL"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{marker} cannot be read ({error}); restore it from a copy of the pool"
        ) from error
    if layout > FORMAT:
        raise PoolError(
            f"{root} has layout {layout}, newer than the {FORMAT} this version knows; "
            "update with: pip install --upgrade dylora-moe"
        )
    return None if database == DATABASE else database
