"""Where the commands get their pool from: the only lines of the command line that load one.

Tests put a fake pool in place of these functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dylora_moe.build.inspection import Inspection
    from dylora_moe.build.pool import Pool
    from dylora_moe.serving.engine.notes import OnNote
    from dylora_moe.serving.served import Served
    from dylora_moe.serving.settings import ServeSettings


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


def open_served(
    path: Path,
    settings: ServeSettings,
    *,
    device: str | None = None,
    dtype: str | None = None,
    on_note: OnNote,
) -> Served:
    """The pool in this folder with an engine that begins to load it.

    Args:
        on_note: told what the engine tells.

    Raises:
        PoolError: no pool there.
    """
    from dylora_moe.build.reader import PoolReader
    from dylora_moe.serving.engine.canary import CanaryRule
    from dylora_moe.serving.engine.engine import BatchingEngine
    from dylora_moe.serving.engine.limits import Limits
    from dylora_moe.serving.engine.novelty import PromptScreen
    from dylora_moe.serving.jobs import Jobs
    from dylora_moe.serving.served import Served

    asked, tried = settings.engine, settings.canary
    limits = Limits(
        rows=asked.rows,
        tokens=asked.tokens,
        waiting=asked.queue,
        prompt_tokens=asked.prompt_tokens,
        answer_tokens=settings.limits.max_tokens,
    )
    canary = None
    if tried.share:
        canary = CanaryRule(tried.share, tried.answers, tried.tolerance, tried.errors)
    engine = BatchingEngine.open(
        path,
        device=device,
        dtype=dtype,
        limits=limits,
        canary=canary,
        screen_of=PromptScreen.making if settings.screen else None,
        on_note=on_note,
    )
    # One of its own, to be read: the engine's belongs to the engine's thread.
    pool = PoolReader.open(path)
    name = settings.name or path.resolve().name
    # What is learned from here is learned on what is answered on.
    on = {"--device": device, "--dtype": dtype}
    options = [f"{option}={value}" for option, value in on.items() if value is not None]
    return Served(pool, engine, name, Jobs(pool.jobs, pool.path, learn_options=options))
