"""This room's tests work on taught pools."""

from tests.pool_fixtures import (
    _no_waiting,
    base_folder,
    copy,
    empty,
    empty_folder,
    taught,
    taught_folder,
)

__all__ = ["_no_waiting", "base_folder", "copy", "empty", "empty_folder", "taught", "taught_folder"]
