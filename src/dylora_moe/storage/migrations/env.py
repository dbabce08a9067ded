"""Alembic's entry: runs the steps on the connection that `storage.migrate` hands in.

Alembic executes this file as a script, so unlike every other module it does something on import.
"""

from __future__ import annotations

from alembic import context

from dylora_moe.storage.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite cannot alter a column in place: batch mode copies the table instead.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
