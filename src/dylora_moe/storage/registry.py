"""The registry on SQL: every version of everything, and the pointer to the current revision.

Knows transactions; knows no files, so that it can say what a pool is made of on any machine.
Revisions and expert versions are only ever added; the pointer alone moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from dylora_moe.errors import PoolError
from dylora_moe.records import EXPERT_PREFIX, Event, ExpertVersion, PoolRevision
from dylora_moe.storage import rows
from dylora_moe.storage.clock import Clock, now
from dylora_moe.storage.database import Database
from dylora_moe.storage.migrate import schema_version, upgrade
from dylora_moe.storage.revision_rules import check, check_unchanged
from dylora_moe.storage.schema import (
    counters,
    datasets,
    events,
    expert_versions,
    meta,
    pointer,
    revisions,
)

_EXPERTS = "expert"


class SqlRegistry:
    """Implements `ports.Registry` on SQLite or PostgreSQL."""

    def __init__(self, url_or_path: str | Path, clock: Clock = now) -> None:
        """Opens the registry of an existing pool and brings its schema up to date.

        Raises:
            PoolError: if there is no pool, or a newer version of this package wrote it.
        """
        self.database = database = Database(url_or_path)
        self._clock = clock
        # SQLite makes a missing file by opening it.
        missing = database.is_file and not Path(str(database.url.database)).is_file()
        if missing or not holds_pool(database):
            raise PoolError(f"{database.name} holds no pool; make one with: dylora init POOL")
        upgrade(database)

    @classmethod
    def create(
        cls, url_or_path: str | Path, facts: Mapping[str, Any], clock: Clock = now
    ) -> SqlRegistry:
        """Makes the tables, the pool's fixed facts and the empty revision 0.

        Raises:
            PoolError: if a pool is there already.
        """
        database = Database(url_or_path)
        upgrade(database)
        with database.write() as connection:
            if connection.execute(select(pointer)).first() is not None:
                raise PoolError(
                    f"{database.name} already holds a pool; name another database or remove it"
                )
            for key, value in facts.items():
                connection.execute(insert(meta).values(key=key, value=rows.encode(value)))
            empty = PoolRevision(0, None, (), (), None, None, note="created")
            connection.execute(insert(revisions).values(**_revision_values(empty, clock())))
            connection.execute(insert(pointer).values(id=1, revision=0))
        database.close()
        return cls(url_or_path, clock)

    def close(self) -> None:
        """Gives back the connections; the registry may be used again after it."""
        self.database.close()

    def schema_version(self) -> str:
        """The migration that the tables stand at."""
        with self.database.read() as connection:
            return str(schema_version(connection))

    def meta(self) -> dict[str, Any]:
        """The pool's fixed facts, as given to `create`."""
        with self.database.read() as connection:
            found = connection.execute(select(meta).order_by(meta.c.key)).mappings()
            return {row["key"]: rows.decode(row["value"]) for row in found}

    def current(self) -> PoolRevision:
        """The revision the pointer stands at."""
        with self.database.read() as connection:
            return self._revision(connection, _current_number(connection))

    def current_number(self) -> int:
        """The number of the current revision, for whoever only asks whether it moved."""
        with self.database.read() as connection:
            return _current_number(connection)

    def revision(self, number: int) -> PoolRevision:
        """Any revision; PoolError if there is none with this number."""
        with self.database.read() as connection:
            return self._revision(connection, number)

    def revisions(self) -> list[PoolRevision]:
        """Every revision, oldest first, those the pool was rolled back from too."""
        with self.database.read() as connection:
            found = connection.execute(select(revisions).order_by(revisions.c.number)).mappings()
            return [_revision_of(connection, row) for row in found.all()]

    def commit(self, revision: PoolRevision, events: Sequence[Event] = ()) -> PoolRevision:
        """Adds the revision, its new expert versions and the events, and moves the pointer: all of
        it or, whatever happens in between, nothing.

        Raises:
            PoolError: if the pool moved since `revision.parent` was read, or the revision
                contradicts itself or an expert version that is stored already.
        """
        check(revision)
        moment = self._clock()
        with self.database.write() as connection:
            found = _current_number(connection, for_update=True)
            if revision.parent != found:
                raise PoolError(
                    f"the pool moved on: it is at revision {found}, and this change was made for "
                    f"{revision.parent}; open the pool again and repeat it"
                )
            number = connection.execute(select(func.max(revisions.c.number))).scalar_one() + 1
            new = replace(revision, number=number, created_at=revision.created_at or moment)
            self._add_versions(connection, new.experts, moment)
            connection.execute(insert(revisions).values(**_revision_values(new, moment)))
            connection.execute(update(pointer).values(revision=number))
            _append(connection, events, moment)
            return self._revision(connection, number)

    def move_to(self, number: int, event: Event) -> PoolRevision:
        """Points the pool at another revision that it has been at, and records the event.

        Raises:
            PoolError: if there is no such revision or the pool stands there already.
        """
        with self.database.write() as connection:
            if _current_number(connection, for_update=True) == number:
                raise PoolError(f"the pool is at revision {number} already; name another one")
            target = self._revision(connection, number)
            connection.execute(update(pointer).values(revision=number))
            _append(connection, [event], self._clock())
            return target

    def versions(self, expert_id: str) -> list[ExpertVersion]:
        """Every version ever promoted, oldest first, with alias and maturity as at its creation."""
        query = (
            select(expert_versions)
            .where(expert_versions.c.expert_id == expert_id)
            .order_by(expert_versions.c.version)
        )
        with self.database.read() as connection:
            return [rows.version_of(row) for row in connection.execute(query).mappings()]

    def next_expert_id(self) -> str:
        """Reserves a fresh `expert_<n>`, n from 1; an id that comes to nothing leaves a gap."""
        with self.database.write() as connection:
            _current_number(connection, for_update=True)
            return f"{EXPERT_PREFIX}{_count_up(connection, _EXPERTS)}"

    def next_version(self, expert_id: str) -> int:
        """Reserves the next version number of an expert, from 1; gaps as above."""
        with self.database.write() as connection:
            _current_number(connection, for_update=True)
            return _count_up(connection, _version_counter(expert_id))

    def record(self, *events: Event) -> None:
        """Appends events, all or none."""
        with self.database.write() as connection:
            _append(connection, events, self._clock())

    def events(self, kind: str | None = None, limit: int | None = None) -> list[Event]:
        """Events in the order they were recorded; the last `limit` where given."""
        query = select(events).order_by(events.c.id.desc()).limit(limit)
        if kind is not None:
            query = query.where(events.c.kind == kind)
        with self.database.read() as connection:
            found = connection.execute(query).mappings().all()
        return [rows.event_of(row) for row in reversed(found)]

    def registered(self, path: str) -> dict[str, str]:
        """The files that some version, revision or dataset names, at or below this path, with
        their SHA-256: what must stay as it is so that every revision can be gone back to."""
        named: dict[str, str] = {}
        with self.database.read() as connection:
            for files in connection.execute(select(expert_versions.c.files)).scalars():
                named.update((each["path"], each["sha256"]) for each in files)
            for manifest in connection.execute(select(revisions.c.manifest)).scalars():
                named.update((a.path, a.sha256) for a in rows.manifest_artifacts(manifest))
            indexed = connection.execute(select(datasets.c.path, datasets.c.sha256))
            named.update((row.path, row.sha256) for row in indexed)
        return {each: h for each, h in named.items() if each == path or each.startswith(path + "/")}

    def _revision(self, connection: Connection, number: int) -> PoolRevision:
        query = select(revisions).where(revisions.c.number == number)
        row = connection.execute(query).mappings().one_or_none()
        if row is None:
            last = connection.execute(select(func.max(revisions.c.number))).scalar_one()
            raise PoolError(f"there is no revision {number}; the pool has 0 to {last}")
        return _revision_of(connection, row)

    def _add_versions(
        self, connection: Connection, experts: Iterable[ExpertVersion], moment: str
    ) -> None:
        for expert in experts:
            query = select(expert_versions).where(
                expert_versions.c.expert_id == expert.expert_id,
                expert_versions.c.version == expert.version,
            )
            stored = connection.execute(query).mappings().one_or_none()
            if stored is not None:
                check_unchanged(rows.version_of(stored), expert)
                continue
            new = replace(expert, created_at=expert.created_at or moment)
            connection.execute(insert(expert_versions).values(**rows.version_values(new)))
            _raise_to(connection, _version_counter(expert.expert_id), expert.version)
            number = expert.expert_id.removeprefix(EXPERT_PREFIX)
            if number.isdecimal():
                _raise_to(connection, _EXPERTS, int(number))


def holds_pool(database: Database) -> bool:
    """Whether a pool was made in the database.

    Raises:
        PoolError: if it cannot be reached.
    """
    with database.read() as connection:
        return schema_version(connection) is not None


def _current_number(connection: Connection, for_update: bool = False) -> int:
    """The pointer; `for_update` makes writers on a server queue up here (SQLite, whose write
    transactions exclude each other anyway, leaves the clause out)."""
    query = select(pointer.c.revision)
    number: int = connection.execute(query.with_for_update() if for_update else query).scalar_one()
    return number


def _revision_values(revision: PoolRevision, moment: str) -> dict[str, Any]:
    return {
        "number": revision.number,
        "parent": revision.parent,
        "manifest": rows.manifest_values(revision),
        "note": revision.note,
        "created_at": revision.created_at or moment,
    }


def _revision_of(connection: Connection, row: rows.Row) -> PoolRevision:
    manifest = row["manifest"]
    listed = manifest["experts"]
    query = select(expert_versions).where(
        expert_versions.c.expert_id.in_([each["expert_id"] for each in listed])
    )
    stored = {
        (found["expert_id"], found["version"]): rows.version_of(found)
        for found in connection.execute(query).mappings()
    }
    return PoolRevision(
        number=row["number"],
        parent=row["parent"],
        experts=tuple(
            replace(
                stored[each["expert_id"], each["version"]],
                alias=each["alias"],
                maturity=each["maturity"],
            )
            for each in listed
        ),
        skills=tuple(rows.skill_of(each) for each in manifest["skills"]),
        router=rows.optional_artifact(manifest["router"]),
        scores=rows.optional_artifact(manifest["scores"]),
        note=row["note"],
        created_at=row["created_at"],
    )


def _append(connection: Connection, new: Sequence[Event], moment: str) -> None:
    for event in new:
        connection.execute(insert(events).values(**rows.event_values(event, moment)))


def _version_counter(expert_id: str) -> str:
    return f"version:{expert_id}"


def _count_up(connection: Connection, name: str) -> int:
    query = select(counters.c.value).where(counters.c.name == name)
    value = (connection.execute(query).scalar_one_or_none() or 0) + 1
    _raise_to(connection, name, value)
    return value


def _raise_to(connection: Connection, name: str, value: int) -> None:
    """Sets the counter to at least this value."""
    query = select(counters.c.value).where(counters.c.name == name)
    stored = connection.execute(query).scalar_one_or_none()
    if stored is None:
        connection.execute(insert(counters).values(name=name, value=value))
    elif stored < value:
        connection.execute(update(counters).where(counters.c.name == name).values(value=value))
