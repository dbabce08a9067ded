"""Alembic's folder: the steps from every older schema to the one in `storage.schema`."""
