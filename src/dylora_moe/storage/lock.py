"""One learner per pool: a lock on a file that the system drops when its holder dies.

Knows processes of one machine, through `flock`: another machine that shares the folder is kept
out only where its file system carries the lock over (NFS 4 does). Systems without `fcntl`
(Windows) are not supported.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from dylora_moe.errors import PoolError, PoolLockedError
from dylora_moe.storage.clock import Clock, now
from dylora_moe.storage.durable import full_disk_told

LOCK_FILE = ".lock"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a pool, as the lock file tells it."""

    pid: int
    host: str
    since: str
    what: str


class FileLock:
    """Implements `ports.PoolLock` in a pool's folder.

    A hold belongs to one `hold` block: a second one is refused in the same process too, on any
    thread.
    """

    def __init__(self, root: Path, clock: Clock = now) -> None:
        self._root = root
        self._clock = clock

    @contextmanager
    def hold(self, what: str) -> Iterator[None]:
        """Holds the lock during the block; `what` completes "it is busy with ...".

        Raises:
            PoolLockedError: at once, if it is held; names the holder.
            PoolError: if the folder cannot be written to.
        """
        descriptor = self._opened()
        try:
            self._take(descriptor)
            with full_disk_told(self._root):
                self._announce(descriptor, what)
            try:
                yield
            finally:
                os.ftruncate(descriptor, 0)
                # Explicitly: a forked worker may still have the descriptor, and closing ours
                # alone would leave the lock with it.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)

    def _opened(self) -> int:
        try:
            # The file stays for good: two processes that lock a removed and a new one both win.
            return os.open(self._root / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise PoolError(
                f"{self._root} cannot be locked: {error.strerror}; "
                "check that it exists and that you may write to it"
            ) from error

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PoolLockedError(self._told(descriptor)) from None
        except OSError as error:
            raise PoolError(
                f"the file system of {self._root} has no locks ({error.strerror}); "
                "keep the pool on a local disk"
            ) from error

    def _announce(self, descriptor: int, what: str) -> None:
        holder = Holder(os.getpid(), socket.gethostname(), self._clock(), what)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)

    def holder(self) -> str | None:
        """Who holds the pool now, in words; None where it is free. Takes nothing."""
        if not (self._root / LOCK_FILE).exists():
            return None
        descriptor = self._opened()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._told(descriptor)
        finally:
            os.close(descriptor)
        return None

    def _told(self, descriptor: int) -> str:
        holder = _holder(descriptor)
        if holder is None:
            return f"{self._root} is in use by another process; wait until it is done"
        where = "" if holder.host == socket.gethostname() else f" on {holder.host}"
        return (
            f"{self._root} is in use: process {holder.pid}{where} has held it since "
            f"{holder.since}, busy with {holder.what}; wait until it is done, or stop that process"
        )


def _holder(descriptor: int) -> Holder | None:
    """What the holder wrote; it takes the lock first and then writes, so look again for a while."""
    for _ in range(10):
        try:
            return Holder(**json.loads(os.pread(descriptor, 1 << 16, 0)))
        except (ValueError, TypeError):
            time.sleep(0.02)
    return None
