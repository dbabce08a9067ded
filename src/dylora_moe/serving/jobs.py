"""Jobs: what changes a pool, run as the ordinary command in another process, one after the other.

The server itself never writes a revision: the engine picks up what these leave. Knows processes and
the folders of jobs; knows no HTTP.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from dylora_moe.errors import ArtifactError, PoolError, QueueFullError
from dylora_moe.ports import JobFolder, JobStore
from dylora_moe.serving.commands import INTERRUPTED, Kind, Outcome, Work, command_line, outcome
from dylora_moe.serving.progress import Progress, read_progress

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled")

LOG, OUTPUT = "stderr.log", "output.json"
KEPT = 100
"""Jobs that are remembered."""
_LOOK = 0.1
_AGAIN = 3.0
"""Seconds after which a process is told once more: its first seconds it is only being loaded."""
_PATIENCE = 60.0
"""Seconds that a job has to come to its end once it was told to; it may be writing a checkpoint."""
_CODE = (
    "import os, sys; os.nice(10); from dylora_moe.cli.main import run; sys.exit(run(sys.argv[1:]))"
)


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


def dylora(arguments: Sequence[str]) -> list[str]:
    """The command line of another `dylora`, at low priority."""
    # -P: the folder that the server was started in is no place to import from.
    return [sys.executable, "-P", "-c", _CODE, *arguments]


class Jobs:
    """The jobs of one server.

    Args:
        store: where they are written down.
        pool: the pool's folder.
        most_waiting: that may be queued.
        command: makes the command line that is run, of the words after `dylora`.
    """

    def __init__(
        self,
        store: JobStore,
        pool: Path,
        *,
        most_waiting: int = 8,
        command: Callable[[Sequence[str]], list[str]] = dylora,
    ) -> None:
        self._store, self._pool, self._most_waiting = store, pool, most_waiting
        self._command = command
        self._changed = threading.Condition()
        self._waiting: deque[tuple[str, Work]] = deque()
        self._folders: dict[str, JobFolder] = {}
        self._jobs: dict[str, Job] = {}
        self._cancelled: set[str] = set()
        self._began = 0.0
        self._stopping = False
        self._read_earlier()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    def list(self) -> list[Job]:
        """Every job that is remembered, oldest first."""
        with self._changed:
            found = list(self._jobs.values())
        return [self._seen(job) for job in found]

    def get(self, job_id: str) -> Job:
        """PoolError if there is no such job."""
        with self._changed:
            found = self._jobs.get(job_id)
        if found is None:
            raise PoolError("there is no such job; list them to see those there are")
        return self._seen(found)

    def submit(self, work: Work) -> Job:
        """Takes a job on.

        Raises:
            QueueFullError: as many wait as may, or the server is being stopped.
        """
        with self._changed:
            if self._stopping or len(self._waiting) >= self._most_waiting:
                message = f"{len(self._waiting)} jobs wait, as many as may; come again later"
                raise QueueFullError(message, 60.0)
            folder = self._store.create({})
            job = Job(folder.id, work.kind, work.subject, "queued", _now())
            self._folders[job.id] = folder
            self._keep(job)
            self._waiting.append((job.id, work))
            self._changed.notify_all()
        return job

    def cancel(self, job_id: str) -> Job:
        """Ends a job: at once if it waits; what it has learned half-way is kept, and learning the
        same rows goes on from there. PoolError if there is no such job."""
        with self._changed:
            job = self.get(job_id)
            if job.state == "queued":
                self._waiting = deque(one for one in self._waiting if one[0] != job_id)
                self._keep(replace(job, state="cancelled", ended=_now(), message="cancelled"))
            elif job.state == "running":
                self._cancelled.add(job_id)
                self._changed.notify_all()
            return self._jobs[job_id]

    def stop(self) -> None:
        """Ends all jobs as `cancel` does, and waits for that."""
        with self._changed:
            self._stopping = True
            for job in list(self._jobs.values()):
                if job.state not in ENDED:
                    self.cancel(job.id)
            self._changed.notify_all()
        self._thread.join()

    def _read_earlier(self) -> None:
        """Jobs of earlier servers; what one of them left undone is nobody's now."""
        for folder in self._store.all():
            try:
                job = Job(**folder.state())
            except (ArtifactError, TypeError):
                # Damaged, or not yet written when its server died: nothing was begun.
                continue
            if job.kind not in get_args(Kind):
                continue
            self._folders[job.id] = folder
            self._jobs[job.id] = job
            if job.state not in ENDED:
                told = "the server ended before it; the same again goes on where it was"
                self._keep(replace(job, state="cancelled", ended=_now(), message=told))
        self._forget()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if not self._waiting:
                    return
                job_id, work = self._waiting.popleft()
                self._began = time.time()
                job = replace(self._jobs[job_id], state="running", started=_now())
                self._keep(job)
            try:
                code, output = self._process(job, work)
                told = outcome(work.kind, code, output)
            except OSError as error:
                code, told = 1, Outcome(f"it could not be started: {error.strerror}")
            self._end(job, code, told)

    def _process(self, job: Job, work: Work) -> tuple[int, str]:
        """Runs the command to its end; exit code and stdout."""
        folder = self._folders[job.id].path
        arguments = command_line(work, self._pool)
        with (folder / OUTPUT).open("wb") as output, (folder / LOG).open("wb") as log:
            process = subprocess.Popen(
                self._command(arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                # Ctrl-C at the server's terminal is the server's to pass on.
                start_new_session=True,
            )
            self._wait(job.id, process)
        return process.returncode, (folder / OUTPUT).read_text(encoding="utf-8", errors="replace")

    def _wait(self, job_id: str, process: subprocess.Popen[bytes]) -> None:
        told_at = first = 0.0
        while process.poll() is None:
            with self._changed:
                if job_id not in self._cancelled:
                    self._changed.wait(_LOOK)
                wanted = job_id not in self._cancelled
            if wanted:
                continue
            now = time.monotonic()
            first = first or now
            if now - first > _PATIENCE:
                process.kill()
            elif now - told_at > _AGAIN:
                process.send_signal(signal.SIGINT)
                told_at = now
            time.sleep(_LOOK)

    def _end(self, job: Job, code: int, told: Outcome) -> None:
        seen = self._seen(self._jobs[job.id])
        state: State = "done" if code == 0 else "failed"
        message = told.message
        with self._changed:
            if code != 0 and (job.id in self._cancelled or code == INTERRUPTED):
                state, message = "cancelled", "cancelled; the same again goes on where it was"
            self._cancelled.discard(job.id)
            progress = 1.0 if state == "done" else seen.progress
            self._keep(
                replace(
                    seen, state=state, ended=_now(), progress=progress, message=message,
                    result=told.result,
                )
            )  # fmt: skip
            self._forget()

    def _seen(self, job: Job) -> Job:
        """The job with how far it is."""
        if job.state != "running":
            return job
        log = self._folders[job.id].path / LOG
        found: Progress = read_progress(log, self._pool / "runs", self._began)
        return replace(
            job, progress=found.share, stage=found.stage, phase=found.phase, loss=found.loss
        )

    def _keep(self, job: Job) -> None:
        self._folders[job.id].save(asdict(job))
        self._jobs[job.id] = job

    def _forget(self) -> None:
        over = [job.id for job in self._jobs.values() if job.state in ENDED]
        for job_id in over[: max(0, len(self._jobs) - KEPT)]:
            self._folders.pop(job_id).remove()
            del self._jobs[job_id]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
