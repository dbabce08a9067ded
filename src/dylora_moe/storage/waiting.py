"""The waiting room: rows whose verdict was *unsure*, in files, until there are enough of them.

A file's name ends with the start of its hash, so a damaged one is noticed. Knows no database: the
folder is all there is, and it survives a restart.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dylora_moe.errors import ArtifactError, PoolError
from dylora_moe.records import Example
from dylora_moe.storage.artifacts import FileArtifacts
from dylora_moe.storage.example_lines import read_lines, write_lines

_FOLDER = "waiting"


class _Batch(NamedTuple):
    place: int
    name: str
    path: str
    examples: list[Example]


class WaitingRoom:
    """Batches of rows in `waiting/<name>-<first 16 of SHA-256>.jsonl`.

    The true name and the place in the queue stand in every line: a file name holds only part of
    what people call their data, and times of files do not survive a copy.
    """

    def __init__(self, artifacts: FileArtifacts) -> None:
        self._artifacts = artifacts

    def add(self, name: str, examples: Sequence[Example]) -> int:
        """Adds the rows that do not wait yet, by their key; returns how many wait now."""
        if not name:
            raise PoolError("a batch that waits needs a name; give the name of its file")
        batches = self._read()
        known = {example.key for batch in batches for example in batch.examples}
        new = {example.key: example for example in examples if example.key not in known}
        if new:
            place = max((batch.place for batch in batches), default=0) + 1
            self._write(name, place, list(new.values()))
        return len(known) + len(new)

    def keep(self, name: str, examples: Sequence[Example]) -> None:
        """From now on just these rows wait under the name, at the place that it had.

        What is new is there before what was is gone: a process that dies in between leaves both.
        """
        batches = self._read()
        old = {batch.path for batch in batches if batch.name == name}
        places = [batch.place for batch in batches if batch.path in old]
        written = set()
        if examples:
            place = min(places, default=max((batch.place for batch in batches), default=0) + 1)
            written.add(self._write(name, place, list({e.key: e for e in examples}.values())))
        for path in old - written:
            self._artifacts.remove(path)

    def batches(self) -> list[tuple[str, list[Example]]]:
        """Rows by the name they came under, oldest name first."""
        found: dict[str, list[Example]] = {}
        for batch in self._read():
            found.setdefault(batch.name, []).extend(batch.examples)
        return list(found.items())

    def remove(self, names: Sequence[str]) -> None:
        for batch in self._read():
            if batch.name in names:
                self._artifacts.remove(batch.path)

    def _write(self, name: str, place: int, examples: Sequence[Example]) -> str:
        body = write_lines(examples, before={"batch": name, "place": place}, after={})
        slug = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:60] or "batch"
        sha256 = hashlib.sha256(body).hexdigest()
        return self._artifacts.put_bytes(f"{_FOLDER}/{slug}-{sha256[:16]}.jsonl", body).path

    def _read(self) -> list[_Batch]:
        folder = self._artifacts.root / _FOLDER
        files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
        return sorted(batch for file in files for batch in _batch_of(file))


def _batch_of(file: Path) -> Iterator[_Batch]:
    body = file.read_bytes()
    if not file.stem.endswith(hashlib.sha256(body).hexdigest()[:16]):
        raise ArtifactError(
            f"{file} is damaged: its contents do not match its name; "
            "remove it and give the rows again"
        )
    path = f"{_FOLDER}/{file.name}"
    lines = list(read_lines(body, path))
    if lines:
        fields = lines[0][1]
        yield _Batch(fields["place"], fields["batch"], path, [example for example, _ in lines])
