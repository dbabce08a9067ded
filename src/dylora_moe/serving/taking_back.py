"""Has the pool itself take a version back that failed its trial, and stays at it until it has.

The engine answers by the version before already, but only for as long as it runs. Knows jobs and
the pool's registry; knows no engine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from dylora_moe.ports import Registry
from dylora_moe.serving.commands import Work
from dylora_moe.serving.jobs import Job, Jobs

AGAIN = 5.0
"""Seconds between two looks."""
LONGEST = 600.0
"""Seconds until what did not work is tried again, at most: twice as long each time."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A version that failed its trial.

    Attributes:
        expert_id, alias: of its expert.
        version: its number.
        back_to: the version that is to serve instead.
    """

    expert_id: str
    alias: str
    version: int
    back_to: int


@dataclass(eq=False)
class _Wanted:
    failed: Failed
    job_id: str | None = None
    tries: int = 0
    not_before: float = 0.0
    told: str = ""


class TakingBack:
    """Takes failed versions back, in a thread of its own.

    Args:
        registry: of the pool.
        jobs: change the pool.
        on_trouble: told in one line what did not work.
        again: seconds between two looks.
    """

    def __init__(
        self,
        registry: Registry,
        jobs: Jobs,
        on_trouble: Callable[[str], object],
        again: float = AGAIN,
    ) -> None:
        self._registry, self._jobs = registry, jobs
        self._on_trouble, self._again = on_trouble, again
        self._changed = threading.Condition()
        self._wanted: dict[str, _Wanted] = {}
        self._news = self._stopping = False
        self._thread = threading.Thread(target=self._run, name="taking-back", daemon=True)
        self._thread.start()

    def add(self, failed: Failed) -> None:
        """Takes a version on; neither waits nor raises, as the engine's thread needs it."""
        with self._changed:
            self._wanted[failed.expert_id] = _Wanted(failed)
            self._news = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Tries nothing any more."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def left(self) -> list[Failed]:
        """Versions that failed and are still in service."""
        with self._changed:
            wanted = list(self._wanted.values())
        return [one.failed for one in wanted if self._is_in_service(one.failed)]

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopping and not self._news:
                    if not self._changed.wait(self._again if self._wanted else None):
                        break
                if self._stopping:
                    return
                self._news = False
                wanted = list(self._wanted.values())
            for one in wanted:
                if self._is_settled(one):
                    self._drop(one)

    def _is_settled(self, wanted: _Wanted) -> bool:
        """Does what can be done now; whether nothing is left to be done."""
        try:
            # What somebody else made of the pool in the meantime stays.
            if not self._is_in_service(wanted.failed):
                return True
            job = None if wanted.job_id is None else self._jobs.get(wanted.job_id)
            if job is not None and job.state in ("queued", "running"):
                return False
            if job is not None and job.state == "cancelled":
                self._tell(wanted, "somebody cancelled the job")
                return True
            self._try(wanted, job)
        except Exception as error:
            # A full queue, a full disk: it may be otherwise the next time.
            wanted.job_id = None
            self._tell(wanted, str(error))
        return False

    def _try(self, wanted: _Wanted, before: Job | None) -> None:
        failed, now = wanted.failed, time.monotonic()
        if now < wanted.not_before:
            return
        if before is not None:
            self._tell(wanted, before.message)
        wanted.not_before = now + min(LONGEST, self._again * 2 ** min(wanted.tries, 10))
        wanted.tries += 1
        arguments = (failed.expert_id, str(failed.back_to), f"--instead-of={failed.version}")
        wanted.job_id = self._jobs.submit(Work("promote", failed.alias, arguments)).id

    def _tell(self, wanted: _Wanted, why: str) -> None:
        if why == wanted.told:
            return
        failed, wanted.told = wanted.failed, why
        self._on_trouble(f"{failed.alias}@{failed.version} is not yet taken out of the pool: {why}")

    def _is_in_service(self, failed: Failed) -> bool:
        current = self._registry.current().expert(failed.expert_id)
        return current is not None and current.version == failed.version

    def _drop(self, wanted: _Wanted) -> None:
        with self._changed:
            # Another version may have failed since.
            if self._wanted.get(wanted.failed.expert_id) is wanted:
                del self._wanted[wanted.failed.expert_id]
