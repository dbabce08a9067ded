"""Connections to a pool's database: SQLite in a file, or any SQLAlchemy URL (PostgreSQL).

The one place with SQL that only SQLite knows. Knows no tables. Turns the driver's errors into ours.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError

from dylora_moe.errors import (
    ArtifactError,
    DatabaseUnavailableError,
    MissingExtraError,
    PoolError,
    StorageFullError,
)

BUSY_SECONDS = 30.0
"""How long a writer waits for another one before it gives up."""

_LEAST_BYTES = 64 * 1024
"""Free space below which a transaction finds no room: a few pages and the list of them."""

AS_IT_IS_WRITTEN = "write it as postgresql+psycopg://user@host/database"

_PSYCOPG = "postgresql+psycopg"
_BARE = ("postgresql", "postgres")
_WRITES = "dylora_writes"


class Database:
    """Read and write transactions on one pool's database.

    Connections are opened per transaction on SQLite, so that nothing stays open over a fork or a
    rename of the pool's folder.
    """

    def __init__(self, url_or_path: str | Path) -> None:
        """Connects lazily: nothing is opened or created before the first transaction.

        Raises:
            PoolError: if a URL is malformed or of a kind of database that is not known.
            MissingExtraError: if its driver is not installed.
        """
        self.url = read_url(url_or_path)
        self.is_file = self.url.get_backend_name() == "sqlite"
        self.engine = _sqlite_engine(self.url) if self.is_file else _server_engine(self.url)

    @property
    def name(self) -> str:
        """The file or the URL without its password, for messages."""
        if self.is_file:
            return str(self.url.database)
        return self.url.render_as_string(hide_password=True)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database and never waits for writers."""
        with self._translated(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that holds the write lock from its first statement on, all or nothing."""
        with (
            self._translated(),
            self.engine.execution_options(**{_WRITES: True}).begin() as connection,
        ):
            yield connection

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as error:
            mended = _explained(error, self.name)
            if mended is None:
                raise
            raise mended from error


def read_url(url_or_path: str | Path) -> URL:
    """The URL that a text is, or of the SQLite file at a path.

    Raises:
        PoolError: it is malformed.
    """
    if isinstance(url_or_path, Path) or "://" not in url_or_path:
        return URL.create("sqlite", database=str(url_or_path))
    try:
        url = make_url(url_or_path)
    except ArgumentError as error:
        raise PoolError(f"the database URL cannot be read; {AS_IT_IS_WRITTEN}") from error
    # Without a driver SQLAlchemy would look for psycopg2, which the extra does not bring.
    return url.set(drivername=_PSYCOPG) if url.drivername in _BARE else url


def _server_engine(url: URL) -> Engine:
    try:
        return create_engine(url, pool_pre_ping=True)
    except NoSuchModuleError as error:
        raise PoolError(
            f"no database of the kind {url.drivername} is known; {AS_IT_IS_WRITTEN}"
        ) from error
    except ImportError as error:
        remedy = "install it"
        if url.drivername == _PSYCOPG:
            remedy = 'pip install "dylora-moe[postgresql]"'
        raise MissingExtraError(
            f"a database at {url.drivername} needs the package {error.name or url.drivername}, "
            f"which is not installed; {remedy}"
        ) from error


def _sqlite_engine(url: URL) -> Engine:
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _configure(connection: sqlite3.Connection, _record: Any) -> None:
    # The driver must not begin transactions by itself: it does so late, and never before DDL.
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    # Read-then-write under a plain BEGIN fails with "locked" instead of waiting when another
    # process wrote in between; IMMEDIATE takes the write lock before the read.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN DEFERRED")


def _explained(error: DatabaseError, name: str) -> PoolError | None:
    """Our error for what the person can mend; None for what is a mistake in the code."""
    if not isinstance(error.orig, sqlite3.Error):
        if isinstance(error, OperationalError):
            return DatabaseUnavailableError(
                f"{name} cannot be reached: {_first_line(error)}; is it up?"
            )
        return None
    # The low byte is the primary code; the rest tells variants of it apart.
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    # On some file systems a write that finds no room fails as an I/O error.
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _has_no_room(name)):
        return StorageFullError(f"the disk is full: {name} was not changed; free some space")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DatabaseUnavailableError(
            f"{name} is busy: another process has been writing for {BUSY_SECONDS:.0f} s; try again"
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return ArtifactError(
            f"{name} is damaged: {_first_line(error)}; restore the pool's folder from a copy"
        )
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR):
        return DatabaseUnavailableError(
            f"{name} cannot be used: {_first_line(error)}; "
            "check that it exists and that you may write to its folder"
        )
    return None


def _has_no_room(file: str) -> bool:
    try:
        return shutil.disk_usage(Path(file).parent).free < _LEAST_BYTES
    except OSError:
        return False


def _first_line(error: DatabaseError) -> str:
    return str(error.orig).strip().partition("\n")[0]
