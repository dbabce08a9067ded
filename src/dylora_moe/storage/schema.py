"""The tables of a pool's database, the same on SQLite and PostgreSQL.

Knows columns and constraints; knows no queries. A change here needs a step in `migrations/versions`
and a new `HEAD`; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

HEAD = "0001"
"""The schema that this code reads and writes: the newest migration's number."""

# Named constraints: without a name a later migration cannot drop them on every database.
metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

meta = Table(
    "meta",
    metadata,
    Column("key", String, primary_key=True),
    Column("value", JSON, nullable=False),
)

# Rows are immutable. Alias and maturity are those at creation: later ones stand in the manifests.
expert_versions = Table(
    "expert_versions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("expert_id", String, nullable=False),
    Column("skill_id", String, nullable=False),
    Column("alias", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("lora_config", JSON, nullable=False),
    Column("storage_path", String, nullable=False),
    Column("sha256", String, nullable=False),
    Column("files", JSON, nullable=False),
    Column("maturity", Float, nullable=False),
    Column("maturity_state", String, nullable=False),
    Column("parents", JSON, nullable=False),
    Column("history", JSON, nullable=False),
    Column("created_at", String, nullable=False),
    UniqueConstraint("expert_id", "version", name="uq_expert_versions_expert_id_version"),
    CheckConstraint("version >= 1", name="counts_from_one"),
    CheckConstraint("maturity >= 0 AND maturity <= 1", name="maturity_is_a_share"),
)

datasets = Table(
    "datasets",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("skill_id", String, nullable=False, index=True),
    Column("expert_id", String, nullable=False),
    Column("expert_version", Integer, nullable=False),
    Column("split", String, nullable=False),
    Column("count", Integer, nullable=False),
    Column("path", String, nullable=False, unique=True),
    Column("sha256", String, nullable=False),
    Column("created_at", String, nullable=False),
)

revisions = Table(
    "revisions",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("parent", Integer, ForeignKey("revisions.number"), nullable=True),
    Column("manifest", JSON, nullable=False),
    Column("note", Text, nullable=False),
    Column("created_at", String, nullable=False),
)

# One row: which revision the pool is. Writers lock it first where the database locks by row.
pointer = Table(
    "pointer",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("revision", Integer, ForeignKey("revisions.number"), nullable=False),
    CheckConstraint("id = 1", name="single"),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("created_at", String, nullable=False),
    Column("kind", String, nullable=False, index=True),
    Column("message", Text, nullable=False),
    Column("run_id", String, nullable=True),
    Column("numbers", JSON, nullable=False),
)

counters = Table(
    "counters",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", Integer, nullable=False),
)
