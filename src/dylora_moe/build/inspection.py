"""What is stored of a pool, read without its base and without taking its lock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dylora_moe.errors import ArtifactError
from dylora_moe.records import PoolRevision
from dylora_moe.storage import pool_folder


@dataclass(frozen=True, slots=True)
class Inspection:
    """A pool as it lies there.

    Attributes:
        holder: who is learning into it, in words; None where nobody is.
        unfinished: ids of runs that can be gone on with.
        waiting: rows that wait for more of their kind.
        waiting_fault: what is wrong with their files; None where nothing is.
    """

    root: Path
    meta: Mapping[str, Any]
    revision: PoolRevision
    schema_version: str
    holder: str | None
    unfinished: tuple[str, ...]
    waiting: int = 0
    waiting_fault: str | None = None


def inspect_pool(path: Path) -> Inspection:
    """Reads a pool.

    Raises:
        PoolError: no pool there.
        ArtifactError: its database or a journal is damaged.
    """
    storage = pool_folder.open(path)
    try:
        waiting, fault = _waiting(storage)
        return Inspection(
            root=storage.root,
            meta=storage.registry.meta(),
            revision=storage.registry.current(),
            schema_version=storage.registry.schema_version(),
            holder=storage.lock.holder(),
            unfinished=tuple(run.id for run in storage.runs.unfinished()),
            waiting=waiting,
            waiting_fault=fault,
        )
    finally:
        storage.close()


def _waiting(storage: pool_folder.Storage) -> tuple[int, str | None]:
    try:
        return sum(len(rows) for _, rows in storage.examples.waiting()), None
    except ArtifactError as error:
        return 0, str(error)
