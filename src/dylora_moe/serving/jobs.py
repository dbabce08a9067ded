"""Jobs: what changes a pool, run as the ordinary command in another process, one after the other.

The server itself never writes a revision: the engine picks up what these leave. Knows the queue;
knows no HTTP.
"""

from __future__ import annotations

import builtins
import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dylora_moe.errors import PoolError, QueueFullError, UnavailableError
from dylora_moe.ports import JobStore
from dylora_moe.serving.commands import INTERRUPTED, Outcome, Work, command_line, outcome
from dylora_moe.serving.job_book import (
    ENDED,
    LOG,
    OUTPUT,
    Job,
    JobBook,
    State,
    moment,
    text_of,
)
from dylora_moe.serving.processes import Group, Holders, dylora, send

__all__ = ["ENDED", "Job", "Jobs"]

PATIENCE = 60.0
"""Seconds that a job has to come to its end once it was told to; it may be writing a checkpoint."""
_LOOK = 0.1
_AGAIN = 3.0
"""Seconds after which a process is told once more: its first seconds it is only being loaded."""
_LOGGER = logging.getLogger(__name__)


class Jobs:
    """The jobs of one server.

    Args:
        store: where they are written down.
        pool: the pool's folder.
        most_waiting: that may be queued.
        learn_options: of `dylora learn`, for every job that learns: what to compute on.
        command: makes the command line that is run, of the words after `dylora`.
    """

    def __init__(
        self,
        store: JobStore,
        pool: Path,
        *,
        most_waiting: int = 8,
        learn_options: Sequence[str] = (),
        command: Callable[[Sequence[str]], list[str]] = dylora,
    ) -> None:
        self._book, self._pool, self._most_waiting = JobBook(store, pool), pool, most_waiting
        self._command, self._learn_options = command, tuple(learn_options)
        self._changed = threading.Condition()
        self._waiting: deque[tuple[str, Work]] = deque()
        self._reserved = 0
        self._cancelled: set[str] = set()
        self._group: Group | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    def list(self) -> builtins.list[Job]:
        """Every job that is remembered, oldest first."""
        with self._changed:
            return [self._book.seen(job) for job in self._book.all()]

    def get(self, job_id: str) -> Job:
        """PoolError if there is no such job."""
        with self._changed:
            found = self._book.find(job_id)
            if found is None:
                raise PoolError("there is no such job; list them to see those there are")
            return self._book.seen(found)

    def submit(self, work: Work) -> Job:
        """Takes a job on; raises as `submit_made`."""
        return self.submit_made(lambda folder: work)

    def submit_made(self, make: Callable[[Path], Work]) -> Job:
        """Takes a job on that reads rows of its own, which go once they are learned, or with it.

        Args:
            make: writes them into the folder that it is given, and says what is to be done.

        Raises:
            QueueFullError: as many wait as may; nothing was made.
            UnavailableError: the server is being stopped.
        """
        with self._changed:
            self._refuse_stopping()
            taken = len(self._waiting) + self._reserved
            if taken >= self._most_waiting:
                raise QueueFullError(f"{taken} jobs wait, as many as may; come again later", 60.0)
            self._reserved += 1
        try:
            with self._book.prepared() as folder:
                work = make(folder.path)
                with self._changed:
                    self._refuse_stopping()
                    job = self._book.begin(folder, work)
                    self._waiting.append((job.id, work))
                    self._changed.notify_all()
            return job
        finally:
            with self._changed:
                self._reserved -= 1

    def cancel(self, job_id: str) -> Job:
        """Ends a job: at once if it waits; what it has learned half-way is kept, and learning the
        same rows goes on from there. One that waits for another server stays. PoolError if there is
        no such job."""
        with self._changed:
            job = self.get(job_id)
            if not self._book.is_own(job_id):
                holders = Holders.of(self._book.folder(job_id))
                if job.state == "running" and holders is not None and holders.job is not None:
                    send(holders.job.pid, signal.SIGINT)
            elif job.state == "queued":
                self._waiting = deque(one for one in self._waiting if one[0] != job_id)
                job = replace(job, state="cancelled", ended=moment(), message="cancelled")
                self._book.keep(job)
            elif job.state == "running":
                self._cancelled.add(job_id)
                self._changed.notify_all()
            return job

    def stop(self) -> None:
        """Takes no more jobs, ends all of them as `cancel` does, and waits for that."""
        with self._changed:
            self._stopping = True
            for job in self._book.all():
                if job.state not in ENDED and self._book.is_own(job.id):
                    self.cancel(job.id)
            self._changed.notify_all()
        self._thread.join()

    def kill(self) -> None:
        """Ends what runs at once. For a handler of signals: takes no lock, waits for nothing."""
        group = self._group
        if group is not None:
            group.kill()

    def _refuse_stopping(self) -> None:
        if self._stopping:
            raise UnavailableError("the server is being stopped")

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if not self._waiting:
                    return
                job_id, work = self._waiting.popleft()
                job = replace(self.get(job_id), state="running", started=moment())
                self._book.keep(job)
            try:
                code, output = self._process(job, work)
                told = outcome(work.kind, code, output)
            except OSError as error:
                code, told = 1, Outcome(f"it could not be started: {error.strerror}")
            except Exception as error:
                # The next ones are to run all the same.
                _LOGGER.error("job %s went wrong", job.id, exc_info=error)
                code, told = 1, Outcome("something went wrong on the server; its log says what")
            try:
                self._end(job, code, told)
            except Exception as error:
                _LOGGER.error("job %s could not be put away", job.id, exc_info=error)

    def _process(self, job: Job, work: Work) -> tuple[int, str]:
        """Runs the command to its end; exit code and stdout."""
        folder = self._book.folder(job.id)
        arguments = command_line(work, self._pool, self._learn_options)
        with (folder / OUTPUT).open("wb") as output, (folder / LOG).open("wb") as log:
            group = self._group = Group(self._command(arguments), output, log)
            try:
                self._book.runs(job.id, group.pid)
                code = self._wait(job.id, group)
            finally:
                group.close()
                self._group = None
        return code, text_of(folder / OUTPUT)

    def _wait(self, job_id: str, group: Group) -> int:
        told_at = first = 0.0
        while (code := group.ended()) is None:
            with self._changed:
                if job_id not in self._cancelled:
                    self._changed.wait(_LOOK)
                wanted = job_id not in self._cancelled
            if wanted:
                continue
            now = time.monotonic()
            first = first or now
            if now - first > PATIENCE:
                group.kill()
            elif now - told_at > _AGAIN:
                send(group.pid, signal.SIGINT)
                told_at = now
            time.sleep(_LOOK)
        return code

    def _end(self, job: Job, code: int, told: Outcome) -> None:
        seen = self._book.seen(job)
        state: State = "done" if code == 0 else "failed"
        message = told.message
        with self._changed:
            if code != 0 and (job.id in self._cancelled or code == INTERRUPTED):
                state, message = "cancelled", "cancelled; the same again goes on where it was"
            self._cancelled.discard(job.id)
            if state == "done":
                # Somebody may have typed them: of a job that failed they can be learned later.
                self._book.drop_rows(job.id)
            progress = 1.0 if state == "done" else seen.progress
            self._book.keep(
                replace(
                    seen, state=state, ended=moment(), progress=progress, message=message,
                    result=told.result,
                )
            )  # fmt: skip
            self._book.forget()
