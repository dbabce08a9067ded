"""The skill store: examples in content-addressed JSONL files, indexed in the database.

Knows which skill, expert and version a file of examples belongs to; knows nothing of what the
examples mean.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import insert, select

from dylora_moe.errors import PoolError
from dylora_moe.records import Artifact, Example
from dylora_moe.storage.artifacts import FileArtifacts
from dylora_moe.storage.clock import Clock, now
from dylora_moe.storage.database import Database
from dylora_moe.storage.example_lines import read_lines, write_lines
from dylora_moe.storage.schema import datasets
from dylora_moe.storage.waiting import WaitingRoom

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True, slots=True)
class Dataset:
    """One file of examples as the index has it."""

    skill_id: str
    expert_id: str
    expert_version: int
    split: str
    count: int
    file: Artifact
    created_at: str


class JsonlExamples:
    """Implements `ports.ExampleStore`: `skills/<skill_id>/<first 16 of SHA-256>.jsonl`."""

    def __init__(self, artifacts: FileArtifacts, database: Database, clock: Clock = now) -> None:
        self._artifacts = artifacts
        self._database = database
        self._clock = clock
        self._waiting = WaitingRoom(artifacts)

    def write(
        self, skill_id: str, expert_id: str, version: int, examples: Sequence[Example], split: str
    ) -> Artifact:
        """Writes and indexes the examples; the same call twice gives the same file, once.

        Raises:
            PoolError: if an id is not made of letters, digits, `_`, `-` and `.`.
            DataError: if there are no examples, or one is not valid Unicode.
            StorageFullError: if the disk is full; nothing changed.
        """
        for name in (skill_id, expert_id, split):
            if not _ID.fullmatch(name):
                raise PoolError(
                    f'"{name}" cannot name a file; use letters, digits, "_", "-" and "."'
                )
        if not examples:
            raise PoolError(f"no {split} examples to store for {skill_id}; give at least one")
        owner = {"skill_id": skill_id, "expert_id": expert_id, "version": version}
        body = write_lines(examples, before=owner, after={"split": split})
        sha256 = hashlib.sha256(body).hexdigest()
        artifact = self._artifacts.put_bytes(f"skills/{skill_id}/{sha256[:16]}.jsonl", body)
        with self._database.write() as connection:
            query = select(datasets.c.id).where(datasets.c.path == artifact.path)
            if connection.execute(query).first() is None:
                row = {
                    "skill_id": skill_id,
                    "expert_id": expert_id,
                    "expert_version": version,
                    "split": split,
                    "count": len(examples),
                    "path": artifact.path,
                    "sha256": artifact.sha256,
                    "created_at": self._clock(),
                }
                connection.execute(insert(datasets).values(**row))
        return artifact

    def read(self, artifact: Artifact) -> list[Example]:
        """The examples of a file, in the order they were written.

        Raises:
            ArtifactError: if the file is missing or damaged.
        """
        body = self._artifacts.open(artifact).read_bytes()
        return [example for example, _ in read_lines(body, artifact.path)]

    def datasets(self, skill_id: str | None = None) -> list[Dataset]:
        """The index, oldest first: every file ever written, of one skill where given."""
        query = select(datasets).order_by(datasets.c.id)
        if skill_id is not None:
            query = query.where(datasets.c.skill_id == skill_id)
        with self._database.read() as connection:
            return [
                Dataset(
                    row["skill_id"],
                    row["expert_id"],
                    row["expert_version"],
                    row["split"],
                    row["count"],
                    Artifact(row["path"], row["sha256"]),
                    row["created_at"],
                )
                for row in connection.execute(query).mappings()
            ]

    def wait(self, name: str, examples: Sequence[Example]) -> int:
        """Adds rows to the waiting room; rows that wait there already are not added again.

        Returns:
            How many rows wait now, of all batches.
        """
        return self._waiting.add(name, examples)

    def waiting(self) -> list[tuple[str, list[Example]]]:
        """Batches that wait, oldest first; rows that came under one name are one batch."""
        return self._waiting.batches()

    def keep(self, name: str, examples: Sequence[Example]) -> None:
        """From now on just these rows wait under the name; none, where there are none."""
        self._waiting.keep(name, examples)

    def admit(self, names: Sequence[str]) -> None:
        """Takes batches out of the waiting room; a name that does not wait (any more) is no
        error, so that a run that is resumed may say it again."""
        self._waiting.remove(names)
