from __future__ import annotations

import shutil

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, inspect, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from dylora_moe.errors import PoolError
from dylora_moe.storage import migrate
from dylora_moe.storage.database import Database
from dylora_moe.storage.registry import SqlRegistry
from dylora_moe.storage.schema import HEAD, metadata
from tests.storage.facts import event, revision


@pytest.fixture
def database(tmp_path):
    return Database(tmp_path / "with 100% odd name?.db")


def test_the_migrations_end_where_the_schema_stands(database):
    migrate.upgrade(database)
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        assert migrate.schema_version(connection) == HEAD
        # compare_metadata does not see check constraints.
        for name, table in metadata.tables.items():
            checks = {c.name for c in table.constraints if isinstance(c, CheckConstraint)}
            assert {c["name"] for c in inspect(connection).get_check_constraints(name)} == checks


def test_the_newest_migration_is_the_head_that_the_code_names():
    assert ScriptDirectory(str(migrate.FOLDER)).get_current_head() == HEAD


def test_upgrading_twice_changes_nothing(database):
    migrate.upgrade(database)
    with database.write() as connection:
        connection.execute(text("INSERT INTO counters VALUES ('a', 3)"))
    migrate.upgrade(database)
    with database.read() as connection:
        assert connection.execute(text("SELECT value FROM counters")).scalar_one() == 3


_LATER = """
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade():
    with op.batch_alter_table("events") as table:
        table.add_column(sa.Column("host", sa.String(), nullable=True))
    {more}
"""


@pytest.fixture
def later(tmp_path, monkeypatch):
    """The next version of this package, which has one more migration."""

    def install(more: str) -> None:
        folder = tmp_path / "migrations"
        shutil.copytree(migrate.FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "versions" / "v0002_later.py").write_text(_LATER.format(more=more))
        monkeypatch.setattr(migrate, "FOLDER", folder)
        monkeypatch.setattr(migrate, "HEAD", "0002")

    return install


def test_an_older_pool_is_brought_up_to_date_when_it_is_opened(tmp_path, later):
    registry = SqlRegistry.create(tmp_path / "a.db", {"base": "tiny"})
    registry.commit(revision(0), [event(n=1)])
    before = registry.current()
    later("")
    again = SqlRegistry(tmp_path / "a.db")
    assert again.current() == before
    assert [e.numbers for e in again.events()] == [{"n": 1}]
    with again.database.read() as connection:
        assert migrate.schema_version(connection) == "0002"
        assert "host" in {c["name"] for c in inspect(connection).get_columns("events")}


def test_a_migration_that_fails_half_way_leaves_the_older_pool_as_it_was(tmp_path, later):
    registry = SqlRegistry.create(tmp_path / "a.db", {"base": "tiny"})
    later("raise RuntimeError('half way')")
    with pytest.raises(RuntimeError, match="half way"):
        SqlRegistry(tmp_path / "a.db")
    with registry.database.read() as connection:
        assert migrate.schema_version(connection) == "0001"
        assert "host" not in {c["name"] for c in inspect(connection).get_columns("events")}


def test_a_newer_pool_is_refused_and_untouched(tmp_path):
    registry = SqlRegistry.create(tmp_path / "a.db", {"base": "tiny"})
    with registry.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(PoolError, match="schema 9999, newer than the 0001"):
        SqlRegistry(tmp_path / "a.db")
    with registry.database.read() as connection:
        assert migrate.schema_version(connection) == "9999"


def test_dropping_leaves_nothing_of_the_pool(database):
    migrate.upgrade(database)
    migrate.drop(database)
    with database.read() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]


def test_every_table_can_be_made_on_postgresql():
    made = [
        str(CreateTable(table).compile(dialect=postgresql.dialect()))
        for table in metadata.sorted_tables
    ]
    assert len(made) == 7
    assert any("SERIAL" in each for each in made)
