"""What the upper rooms ask of storage and clocks; `storage` implements it, `build` hands it in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from dylora_moe.records import (
    Artifact,
    Event,
    Example,
    ExpertVersion,
    InboxEntry,
    PoolRevision,
    Turn,
)

CHECKPOINTS = "checkpoints"
"""Folder in a run's folder: what the run would be gone on from, of no use once it is finished."""


class Registry(Protocol):
    """Knows every version of everything and which revision is current."""

    def meta(self) -> dict[str, Any]:
        """The pool's fixed facts (base, fingerprint, prompt format, tap, seed, ...)."""
        ...

    def current(self) -> PoolRevision:
        """The current revision; number 0 (empty) right after `init`."""
        ...

    def current_number(self) -> int:
        """The number of the current revision, for whoever only asks whether it moved."""
        ...

    def revision(self, number: int) -> PoolRevision: ...

    def revisions(self) -> list[PoolRevision]:
        """Every revision, oldest first."""
        ...

    def commit(self, revision: PoolRevision, events: Sequence[Event] = ()) -> PoolRevision:
        """Writes the revision, its expert versions and the events and moves the pointer, in one
        transaction. `revision.parent` must be the current number, else PoolError (somebody else
        moved the pool). The number is given by the registry: the returned revision carries it."""
        ...

    def move_to(self, number: int, event: Event) -> PoolRevision:
        """Points the pool at an earlier revision (rollback of the pool's last step)."""
        ...

    def versions(self, expert_id: str) -> list[ExpertVersion]:
        """Every version of an expert ever promoted, oldest first."""
        ...

    def next_expert_id(self) -> str:
        """A fresh `expert_<n>`; numbers are never used twice, not even after a removal."""
        ...

    def next_version(self, expert_id: str) -> int: ...

    def record(self, *events: Event) -> None:
        """Appends events."""
        ...

    def events(self, kind: str | None = None, limit: int | None = None) -> list[Event]:
        """Events in order of time; the last `limit` where given."""
        ...


class ArtifactStore(Protocol):
    """Files of a pool that appear whole or not at all (stage, fsync, rename)."""

    @property
    def root(self) -> Path: ...

    def put_bytes(self, path: str, body: bytes) -> Artifact:
        """Writes one file at the path relative to the root."""
        ...

    def stage(self) -> AbstractContextManager[Path]:
        """A temporary folder on the same file system, removed at the end."""
        ...

    def put_folder(self, path: str, staged: Path) -> tuple[Artifact, ...]:
        """Moves a staged folder to `path`, which must not exist; hashes of its files, the
        `.safetensors` first."""
        ...

    def open(self, artifact: Artifact) -> Path:
        """The file's absolute path after checking its hash; ArtifactError if it is damaged."""
        ...


class ExampleStore(Protocol):
    """Content-addressed JSONL files of examples."""

    def write(
        self,
        skill_id: str,
        expert_id: str,
        version: int,
        examples: Sequence[Example],
        split: str,
    ) -> Artifact: ...

    def read(self, artifact: Artifact) -> list[Example]: ...

    def wait(self, name: str, examples: Sequence[Example]) -> int:
        """Adds rows to the waiting room (verdict *unsure*); returns how many wait there now."""
        ...

    def waiting(self) -> list[tuple[str, list[Example]]]:
        """Batches that wait, oldest first, as (name, rows)."""
        ...

    def keep(self, name: str, examples: Sequence[Example]) -> None:
        """From now on just these rows wait under the name."""
        ...

    def admit(self, names: Sequence[str]) -> None:
        """Takes batches out of the waiting room."""
        ...


class Inbox(Protocol):
    """Prompts that no skill claimed, until a person says what to answer; for several processes at
    once."""

    def put(
        self, turns: Sequence[Turn], *, entries: int, size: int, redact: Sequence[str] = ()
    ) -> bool:
        """Keeps a prompt, the same one once; those that were not asked for longest leave where
        there are more than `entries` or more than `size` bytes of them. What the regular
        expressions of `redact` match is never written. Whether it is kept."""
        ...

    def entries(self) -> list[InboxEntry]:
        """Every prompt, the one first asked first."""
        ...

    def remove(self, keys: Collection[str]) -> int:
        """Takes prompts out; how many were there."""
        ...

    def confirm(self, name: str, examples: Sequence[Example], folder: Path | None = None) -> Path:
        """Writes prompts with their answers to a file that `learn` reads, in a folder whose owner
        removes it, or in the inbox; its prompts stay until they are learned."""
        ...

    def learned(self, examples: Sequence[Example]) -> int:
        """Takes out the prompts of rows that a skill has now, and the files of `confirm` that
        hold no other rows; how many prompts left."""
        ...


class Run(Protocol):
    """The folder of one run of learning: journal, checkpoints, logged numbers."""

    @property
    def id(self) -> str: ...

    @property
    def path(self) -> Path: ...

    def state(self) -> dict[str, Any]:
        """The journal as last saved."""
        ...

    def save(self, state: Mapping[str, Any]) -> None:
        """Replaces the journal, whole or not at all."""
        ...

    def finish(self) -> None:
        """Marks the run as done and removes its checkpoints; journal and logged numbers stay."""
        ...


class RunStore(Protocol):
    """The runs of a pool."""

    def create(self, state: Mapping[str, Any], run_id: str | None = None) -> Run: ...

    def unfinished(self) -> Sequence[Run]:
        """Runs that can be gone on with, oldest first."""
        ...


class JobFolder(Run, Protocol):
    """The folder of one job of a server: what it was told, what it said, what came of it."""

    def remove(self) -> None:
        """Deletes the folder."""
        ...


class JobStore(Protocol):
    """The jobs that servers of a pool ran."""

    def create(self, state: Mapping[str, Any], run_id: str | None = None) -> JobFolder: ...

    def all(self) -> Sequence[JobFolder]:
        """Every job, oldest first."""
        ...


class PoolLock(Protocol):
    """One learner per pool."""

    def hold(self, what: str) -> AbstractContextManager[None]:
        """Holds the pool's lock; PoolLockedError names the holder (process, host, since, what)."""
        ...


class Reporter(Protocol):
    """Receives numbers as they fall: progress, TensorBoard, W&B, the run's own log."""

    def log(self, values: dict[str, Any], step: int | None = None) -> None: ...

    def close(self) -> None: ...
