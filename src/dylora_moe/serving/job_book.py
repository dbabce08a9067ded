"""The book of jobs: what is known of each, in memory and in a folder of its own.

Jobs that another server took on are only looked at, as long as that server or their process lives.
Knows folders; starts nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from dylora_moe.errors import ArtifactError
from dylora_moe.ports import JobFolder, JobStore
from dylora_moe.serving.commands import Kind, Outcome, Work, completed, outcome
from dylora_moe.serving.processes import Holders, Mark
from dylora_moe.serving.progress import read_progress

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled")

LOG, OUTPUT = "stderr.log", "output.json"
KEPT = 100
"""Jobs that are remembered."""
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One job, as it was last seen.

    Attributes:
        id: its name.
        kind: which command.
        subject: what it is about.
        state: where it is.
        created, started, ended: ISO 8601; empty before.
        progress: of the stage that it is in, 0 to 1; 1 once it is done.
        stage, phase: what it is doing.
        loss: the last one logged.
        message: one line, once it has ended.
        result: the command's numbers.
    """

    id: str
    kind: Kind
    subject: str
    state: State
    created: str
    started: str = ""
    ended: str = ""
    progress: float = 0.0
    stage: str = ""
    phase: str = ""
    loss: float | None = None
    message: str = ""
    result: Any = None


class JobBook:
    """Every job that is remembered; for one thread at a time.

    Args:
        store: where they are written down.
        pool: the pool's folder.
    """

    def __init__(self, store: JobStore, pool: Path) -> None:
        self._store, self._pool = store, pool
        self._server = Mark.of(os.getpid())
        self._folders: dict[str, JobFolder] = {}
        self._jobs: dict[str, Job] = {}
        self._others: set[str] = set()
        for folder in store.all():
            self._read_earlier(folder)
        self.forget()

    def all(self) -> list[Job]:
        """As they were last seen, oldest first."""
        for job_id in tuple(self._others):
            self._look_at(job_id)
        return list(self._jobs.values())

    def find(self, job_id: str) -> Job | None:
        """One of them as it was last seen."""
        if job_id in self._others:
            self._look_at(job_id)
        return self._jobs.get(job_id)

    def folder(self, job_id: str) -> Path:
        """Of one of them."""
        return self._folders[job_id].path

    def is_own(self, job_id: str) -> bool:
        """Whether it was taken on here, and by no other server."""
        return job_id not in self._others

    @contextmanager
    def prepared(self) -> Iterator[JobFolder]:
        """A folder for a new job, which goes again if the block fails; from any thread.

        Raises:
            StorageFullError: there is no room for it.
        """
        folder = self._store.create({})
        try:
            with suppress(OSError):
                Holders(self._server).save(folder.path)
            yield folder
        except BaseException:
            folder.remove()
            raise

    def begin(self, folder: JobFolder, work: Work) -> Job:
        """Takes a job up whose folder is prepared."""
        job = Job(folder.id, work.kind, work.subject, "queued", moment())
        self._folders[job.id] = folder
        self.keep(job)
        return job

    def runs(self, job_id: str, pid: int) -> None:
        """Notes its process, by which others see that it is alive."""
        with suppress(OSError):
            Holders(self._server, Mark.of(pid)).save(self.folder(job_id))

    def keep(self, job: Job) -> None:
        """Writes it down; where the disk takes nothing it is remembered all the same."""
        self._jobs[job.id] = job
        try:
            self._folders[job.id].save(asdict(job))
        except Exception as error:
            _LOGGER.error("job %s could not be written down", job.id, exc_info=error)

    def seen(self, job: Job) -> Job:
        """The job with how far it is."""
        folder = self._folders.get(job.id)
        if job.state != "running" or folder is None:
            return job
        since = datetime.fromisoformat(job.started).timestamp() if job.started else 0.0
        try:
            found = read_progress(folder.path / LOG, self._pool / "runs", since)
        except OSError:
            return job
        return replace(
            job, progress=found.share, stage=found.stage, phase=found.phase, loss=found.loss
        )

    def drop_rows(self, job_id: str) -> None:
        """Removes the rows that were written for it alone."""
        for file in self.folder(job_id).glob("*.jsonl"):
            with suppress(OSError):
                file.unlink()

    def forget(self) -> None:
        """Drops the oldest that have ended, where there are too many."""
        over = [job.id for job in self._jobs.values() if job.state in ENDED]
        for job_id in over[: max(0, len(self._jobs) - KEPT)]:
            del self._jobs[job_id]
            self._folders.pop(job_id).remove()

    def _read_earlier(self, folder: JobFolder) -> None:
        alive = _alive(folder)
        try:
            job = Job(**folder.state())
        except (ArtifactError, TypeError):
            # Damaged, or not yet written when its server died: nothing was begun.
            return
        if job.kind not in get_args(Kind):
            return
        self._folders[job.id], self._jobs[job.id] = folder, job
        if job.state not in ENDED:
            self._others.add(job.id)
            if not alive:
                self._abandoned(job)

    def _look_at(self, job_id: str) -> None:
        """What has become of a job of another server."""
        folder = self._folders[job_id]
        # In this order: what has ended by now has written what it wrote.
        alive = _alive(folder)
        try:
            job = self._jobs[job_id] = Job(**folder.state())
        except (ArtifactError, TypeError):
            # Its server remembers it no longer.
            self._others.discard(job_id)
            del self._jobs[job_id], self._folders[job_id]
            return
        if job.state in ENDED:
            self._others.discard(job_id)
        elif not alive:
            self._abandoned(job)

    def _abandoned(self, job: Job) -> None:
        """Nobody is at it any more; what it printed says whether it had come to its end."""
        self._others.discard(job.id)
        output = text_of(self.folder(job.id) / OUTPUT)
        if completed(output):
            self.drop_rows(job.id)
            told = outcome(job.kind, 0, output)
            job = replace(job, state="done", progress=1.0, result=told.result)
        else:
            told = Outcome("the server ended before it; the same again goes on where it was")
            job = replace(job, state="cancelled")
        self.keep(replace(job, ended=moment(), message=told.message))


def _alive(folder: JobFolder) -> bool:
    holders = Holders.of(folder.path)
    return holders is not None and holders.alive


def text_of(file: Path) -> str:
    """What a command printed; nothing where there is no file."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def moment() -> str:
    """Now, as a job has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
