"""Runs of learning with their curves, thinned out to what a drawing shows.

Knows the runs' folders; knows nothing of what a curve's key means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dylora_moe.build.run_logs import Point, read_run
from dylora_moe.errors import PoolError

if TYPE_CHECKING:
    from dylora_moe.build.reader import PoolReader

RUNS = 50
POINTS = 240


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run: `name` is its arrival's, or its id; `finished` is False where it can be gone on
    with."""

    id: str
    name: str
    finished: bool


@dataclass(frozen=True, slots=True)
class RunPhase:
    """A phase of a run; updates at which it starts and ends."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class RunCurves:
    """What a run logged.

    Attributes:
        started: seconds since the epoch; None where nothing was logged.
        curves: by key, each a list of (update, value); at most `POINTS` of one.
        warnings: that it gave, each once.
    """

    id: str
    name: str
    finished: bool
    started: float | None
    phases: tuple[RunPhase, ...]
    curves: Mapping[str, tuple[tuple[float, float], ...]]
    warnings: tuple[str, ...]


def list_runs(pool: PoolReader) -> tuple[RunSummary, ...]:
    """The latest runs, newest first."""
    folder = pool.path / "runs"
    ids = [log.parent.name for log in folder.glob("*/journal.json")]
    names, open_runs = _names(pool), {run.id for run in pool.unfinished()}
    # Their ids sort by time.
    latest = sorted(ids, reverse=True)[:RUNS]
    return tuple(RunSummary(id_, names.get(id_, id_), id_ not in open_runs) for id_ in latest)


def run_curves(pool: PoolReader, run_id: str) -> RunCurves:
    """One run's curves.

    Raises:
        PoolError: no such run among the latest.
    """
    # Looked up, never put into a path as it came.
    known = next((run for run in list_runs(pool) if run.id == run_id), None)
    if known is None:
        raise PoolError(f"there is no run {run_id}; list those there are")
    run = read_run(pool.path / "runs" / known.id, name=known.name)
    return RunCurves(
        id=known.id,
        name=known.name,
        finished=known.finished,
        started=run.started,
        phases=tuple(RunPhase(span.name, span.start, span.end) for span in run.phases),
        curves={key: thinned(points) for key, points in run.curves.items()},
        warnings=run.warnings,
    )


def thinned(points: Sequence[Point], most: int = POINTS) -> tuple[tuple[float, float], ...]:
    """A curve in few points that looks the same: of each stretch the lowest and the highest point,
    so that no spike is lost, and the first and the last of all.

    Args:
        points: in order.
        most: points that are kept, 4 or more.
    """
    if len(points) <= most:
        return tuple((point.position, point.value) for point in points)
    inner, n_stretches = range(1, len(points) - 1), (most - 2) // 2
    kept = {0, len(points) - 1}
    for index in range(n_stretches):
        start, end = (len(inner) * k // n_stretches for k in (index, index + 1))
        stretch = inner[start:end]
        kept |= {
            min(stretch, key=lambda place: points[place].value),
            max(stretch, key=lambda place: points[place].value),
        }
    return tuple((points[place].position, points[place].value) for place in sorted(kept))


def _names(pool: PoolReader) -> dict[str, str]:
    """Run id to the name of its arrival, as far as events tell."""
    return {
        event.run_id: str(event.numbers["arrival"])
        for event in pool.events()
        if event.run_id is not None and "arrival" in event.numbers
    }
