"""Where the commands get their pool from: the only lines of the command line that load one.

Tests put a fake pool in place of these functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dylora_moe.build.inspection import Inspection
    from dylora_moe.build.pool import Pool


def create_pool(path: Path, **options: Any) -> Pool:
    """A new pool; the options are those of `Pool.create`.

    Raises:
        PoolError: there is one already.
        BaseModelError: the base cannot be found or understood.
    """
    from dylora_moe.build.pool import Pool

    return Pool.create(path, **options)


def open_pool(path: Path, *, device: str | None = None, dtype: str | None = None) -> Pool:
    """The pool in this folder.

    Raises:
        PoolError: no pool there, or one of another base.
    """
    from dylora_moe.build.pool import Pool

    return Pool.open(path, device=device, dtype=dtype)


def inspect_pool(path: Path) -> Inspection:
    """What is stored of the pool, without its base and without taking its lock.

    Raises:
        PoolError: no pool there, or its database is damaged.
    """
    from dylora_moe.build.inspection import inspect_pool as inspect

    return inspect(path)
