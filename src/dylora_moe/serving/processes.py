"""Processes of jobs: each a group of its own, told to end as Ctrl-C would, known again by others.

Knows processes; knows nothing of what they do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import psutil

HOLDERS = "processes.json"
# A server that a script put into the background ignores Ctrl-C, and so would what it starts.
_BEGIN = "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
_CODE = f"{_BEGIN}; os.nice(10); from dylora_moe.cli.main import run; sys.exit(run(sys.argv[1:]))"
_SAME = 1.0
"""Seconds by which the system may tell one beginning differently."""


def dylora(arguments: Sequence[str]) -> list[str]:
    """The command line of another `dylora`, at low priority."""
    # -P: the folder that the server was started in is no place to import from.
    return [sys.executable, "-P", "-c", _CODE, *arguments]


class Group:
    """A command with all that it starts.

    Args:
        command: is started.
        output, log: take its stdout and stderr.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], output: IO[bytes], log: IO[bytes]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=log,
            # Ctrl-C at the server's terminal is the server's to pass on.
            start_new_session=True,
        )
        self.pid = self._process.pid

    def ended(self) -> int | None:
        """The command's exit code; None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """Ends all of it at once; takes no lock, and what has ended is no error."""
        send(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Ends what the command left running, and the command where it still runs."""
        self.kill()
        self._process.wait()


def send(group: int, number: signal.Signals) -> None:
    """Sends a signal to every process of a group; one that has ended is no error."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


@dataclass(frozen=True, slots=True)
class Mark:
    """One process: its number, and when it began, since numbers are given out again."""

    pid: int
    began: float

    @classmethod
    def of(cls, pid: int) -> Mark:
        """ProcessLookupError if there is none."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error as error:
            raise ProcessLookupError(str(error)) from None

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.began) < _SAME
            return same and found.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


@dataclass(frozen=True, slots=True)
class Holders:
    """Who is at a job.

    Attributes:
        server: that took it on.
        job: its own process, once there is one.
    """

    server: Mark
    job: Mark | None = None

    def save(self, folder: Path) -> None:
        """Writes them into the job's folder."""
        staged = folder / f".{HOLDERS}.new"
        staged.write_text(json.dumps(asdict(self)), encoding="utf-8")
        staged.replace(folder / HOLDERS)

    @classmethod
    def of(cls, folder: Path) -> Holders | None:
        """Those that a job's folder tells of; None where it tells of none."""
        try:
            found = json.loads((folder / HOLDERS).read_text(encoding="utf-8"))
            job = found["job"]
            return cls(Mark(**found["server"]), None if job is None else Mark(**job))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def alive(self) -> bool:
        """Whether any of them still runs."""
        return self.server.alive or (self.job is not None and self.job.alive)
