"""Brings a database to the schema of this code; refuses one that is newer.

Knows Alembic and its folder; knows no rows. A step that fails leaves the schema as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, String, column, inspect, select, table

from dylora_moe.errors import PoolError
from dylora_moe.storage.database import Database
from dylora_moe.storage.schema import HEAD

if TYPE_CHECKING:
    from alembic.config import Config

FOLDER = Path(__file__).parent / "migrations"


def schema_version(connection: Connection) -> str | None:
    """The number of the last migration that was run here; None in an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    query = select(column("version_num", String)).select_from(table("alembic_version"))
    return connection.execute(query).scalar_one_or_none()


def upgrade(database: Database) -> None:
    """Runs every migration that is missing, in one transaction.

    Raises:
        PoolError: if the database was written by a newer version of this package.
    """
    with database.read() as connection:
        if schema_version(connection) == HEAD:
            return
    # Alembic takes a third of a second to import, and most openings of a pool need none of it.
    from alembic import command
    from alembic.script import ScriptDirectory

    config = _config()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with database.write() as connection:
        found = schema_version(connection)
        if found is not None and found not in known:
            raise PoolError(
                f"{database.name} has schema {found}, newer than the {HEAD} this version knows; "
                "update with: pip install --upgrade dylora-moe"
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def drop(database: Database) -> None:
    """Takes every table of the pool out again (an interrupted creation on a server)."""
    from alembic import command

    config = _config()
    with database.write() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    # Alembic interpolates "%" in its options.
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return config
