"""Run folders: what a learning run has done so far, so that another process can go on with it.

Knows a journal (any JSON) and a folder for checkpoints, which goes when the run is finished; knows
nothing of phases.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dylora_moe.errors import ArtifactError, PoolError
from dylora_moe.ports import CHECKPOINTS
from dylora_moe.storage import rows
from dylora_moe.storage.clock import Clock, now
from dylora_moe.storage.durable import (
    full_disk_told,
    publish,
    replace_file,
    staging,
    sync_folder,
    write_file,
)

JOURNAL = "journal.json"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


class RunFolder:
    """One run: its id, its folder (for checkpoints and logs) and its journal."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def id(self) -> str:
        return self.path.name

    def state(self) -> dict[str, Any]:
        """The journal as last saved.

        Raises:
            ArtifactError: if it is missing or damaged.
        """
        state: dict[str, Any] = self._journal()["state"]
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Replaces the journal, whole or not at all.

        Raises:
            StorageFullError: if the disk is full; the journal stays as it was.
        """
        replace_file(self.path / JOURNAL, _body(state, finished=False))

    def finish(self) -> None:
        """Marks the run as done: it is no longer among the unfinished ones, and its checkpoints,
        tens of megabytes that nobody would go on from, are removed."""
        # Before the mark: after an interruption in between, the run is found and finished again.
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)
        replace_file(self.path / JOURNAL, _body(self.state(), finished=True))

    @property
    def finished(self) -> bool:
        return self._journal()["finished"] is True

    def remove(self) -> None:
        """Deletes the folder with all that is in it."""
        # The journal first: what an interruption leaves is then no run any more.
        (self.path / JOURNAL).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def _journal(self) -> dict[str, Any]:
        file = self.path / JOURNAL
        try:
            found = rows.decode(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{file} cannot be read: {error}; remove the run's folder to start it over"
            ) from error
        if not isinstance(found, dict) or not isinstance(found.get("state"), dict):
            raise ArtifactError(f"{file} is no journal; remove the run's folder to start it over")
        return found


class RunFolders:
    """The runs of a pool, in `runs/`."""

    def __init__(self, root: Path, staging_folder: Path, clock: Clock = now) -> None:
        """Args: root: the folder `runs`; staging_folder: where new ones are prepared."""
        self._root = root
        self._staging = staging_folder
        self._clock = clock

    def create(self, state: Mapping[str, Any], run_id: str | None = None) -> RunFolder:
        """A new run with its first journal; ids made here sort by time.

        Raises:
            PoolError: if the id is taken or no plain name.
            StorageFullError: if the disk is full; no folder is left.
        """
        chosen = run_id or f"{_compact(self._clock())}-{uuid.uuid4().hex[:6]}"
        place = self._place(chosen)
        if place.exists():
            raise PoolError(f"there is a run {chosen} already; choose another id")
        with full_disk_told(self._root), staging(self._staging) as staged:
            folder = staged / "run"
            folder.mkdir()
            write_file(folder / JOURNAL, _body(state, finished=False))
            sync_folder(folder)
            publish(folder, place)
        return RunFolder(place)

    def get(self, run_id: str) -> RunFolder:
        """An existing run; PoolError if there is none with this id."""
        place = self._place(run_id)
        if not (place / JOURNAL).is_file():
            raise PoolError(f"there is no run {run_id} in {self._root}")
        return RunFolder(place)

    def all(self) -> list[RunFolder]:
        """Every run, oldest first by its id."""
        return [RunFolder(file.parent) for file in sorted(self._root.glob(f"*/{JOURNAL}"))]

    def unfinished(self) -> list[RunFolder]:
        """Runs that can be gone on with, oldest first."""
        return [run for run in self.all() if not run.finished]

    def _place(self, run_id: str) -> Path:
        if not _ID.fullmatch(run_id):
            raise PoolError(f'"{run_id}" is no run id; use letters, digits, "_" and "-"')
        return self._root / run_id


def _body(state: Mapping[str, Any], finished: bool) -> bytes:
    text = json.dumps({"finished": finished, "state": rows.encode(state)}, indent=1)
    return text.encode() + b"\n"


def _compact(moment: str) -> str:
    """`2025-03-01T12:00:00.123+00:00` as `20250301T120000123`."""
    return re.sub(r"[-:.]", "", moment.partition("+")[0])
