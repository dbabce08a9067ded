"""The logs of the runs: `runs/<run_id>/metrics.jsonl` as curves by key and phase.

Knows the log's format; knows nothing of what the keys mean, beyond the names below.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dylora_moe.evaluation.reading import as_float, as_mapping

HISTOGRAM_KEY = "packed_sequence_length_histogram"
_PLACE = ("time", "phase", "step", "epoch")


@dataclass(frozen=True, slots=True)
class Point:
    """One logged number. `position` counts optimiser steps over all phases of the run."""

    position: float
    phase: str
    value: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of packed sequence lengths; `edges` in tokens has one more entry than `counts`."""

    edges: tuple[float, ...]
    counts: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PhaseSpan:
    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Run:
    """One run: `number` and `name` are those of its step, if one is known; `damaged` counts the
    lines that could not be read."""

    run_id: str
    number: int | None
    name: str
    phases: tuple[PhaseSpan, ...]
    curves: Mapping[str, tuple[Point, ...]]
    histogram: Histogram | None
    damaged: int = 0

    @property
    def label(self) -> str:
        return self.name if self.number is None else f"{self.number}  {self.name}"

    @property
    def length(self) -> float:
        """Optimiser steps of the whole run."""
        return self.phases[-1].end if self.phases else 0.0

    def last(self, key: str) -> float | None:
        points = self.curves.get(key, ())
        return points[-1].value if points else None

    def highest(self, key: str) -> float | None:
        return max((point.value for point in self.curves.get(key, ())), default=None)

    def mean(self, key: str) -> float | None:
        points = self.curves.get(key, ())
        return sum(point.value for point in points) / len(points) if points else None


def read_runs(root: Path, steps: Mapping[str, tuple[int, str]]) -> tuple[Run, ...]:
    """Every run with a log below `root/runs`: those of `steps` (run id to the number and name of
    its step) in order, then the others by the time of their first line."""
    folder = root / "runs"
    if not folder.is_dir():
        return ()
    found: list[tuple[float, float, str, Run]] = []
    for path in sorted(folder.glob("*/metrics.jsonl")):
        run_id = path.parent.name
        lines, damaged = _lines(path)
        number, name = steps.get(run_id, (None, run_id))
        started = as_float(lines[0].get("time")) if lines else None
        place = math.inf if number is None else float(number)
        found.append((place, started or 0.0, run_id, _run(run_id, number, name, lines, damaged)))
    return tuple(item[-1] for item in sorted(found, key=lambda item: item[:3]))


def timeline(runs: Sequence[Run], key: str) -> list[tuple[Run, list[float], list[float]]]:
    """The curve of `key` over all runs, one after the other: (run, positions, values) of each run
    that logged it; positions count the steps of the runs before."""
    offset, found = 0.0, []
    for run in runs:
        points = run.curves.get(key, ())
        if points:
            positions = [offset + point.position for point in points]
            found.append((run, positions, [point.value for point in points]))
        offset += run.length
    return found


def keys_with(runs: Sequence[Run], prefix: str) -> list[str]:
    """Logged keys that start with `prefix`, in the order in which they first appear."""
    found: dict[str, None] = {}
    for run in runs:
        found.update((key, None) for key in run.curves if key.startswith(prefix))
    return list(found)


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    lines: list[dict[str, Any]] = []
    damaged = 0
    # A run that was killed leaves a torn last line; the rest of its log is still good.
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except ValueError:
            damaged += 1
            continue
        if isinstance(value, dict):
            lines.append(value)
        else:
            damaged += 1
    return lines, damaged


def _run(
    run_id: str, number: int | None, name: str, lines: Sequence[dict[str, Any]], damaged: int
) -> Run:
    curves: dict[str, list[Point]] = {}
    histogram = None
    spans: list[PhaseSpan] = []
    for position, phase, values in _placed(lines):
        if spans and spans[-1].name == phase:
            spans[-1] = PhaseSpan(phase, spans[-1].start, max(spans[-1].end, position))
            _forget(curves, phase, position, values)
        else:
            start = spans[-1].end if spans else 0.0
            spans.append(PhaseSpan(phase, start, position))
        histogram = _histogram(values.get(HISTOGRAM_KEY)) or histogram
        for key, value in _numbers(values):
            curves.setdefault(key, []).append(Point(position, phase, value))
    frozen = {key: tuple(points) for key, points in curves.items()}
    return Run(run_id, number, name, tuple(spans), frozen, histogram, damaged)


def _placed(lines: Sequence[dict[str, Any]]) -> Iterator[tuple[float, str, dict[str, Any]]]:
    """Each line with its position in the run. Steps may count from the run's start or from the
    phase's: where a phase starts below the end of the last, its steps are added to that end."""
    offset, end, current = 0.0, 0.0, ""
    for line in lines:
        phase = str(line.get("phase") or "training")
        step = as_float(line.get("step")) or 0.0
        if phase != current:
            offset = end if step < end else 0.0
            current = phase
        position = offset + step
        end = max(end, position)
        yield position, phase, line


def _forget(
    curves: dict[str, list[Point]], phase: str, position: float, values: Mapping[str, Any]
) -> None:
    """A resumed run repeats steps since its checkpoint: what it logged first is superseded."""
    for key, _ in _numbers(values):
        points = curves.get(key, [])
        while points and points[-1].phase == phase and points[-1].position >= position:
            points.pop()


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if key in _PLACE or key == HISTOGRAM_KEY:
            continue
        number = as_float(value)
        if number is not None:
            yield key, number
        for name, inner in as_mapping(value).items():
            number = as_float(inner)
            if number is not None:
                yield f"{key}/{name}", number


def _histogram(value: object) -> Histogram | None:
    """`{"counts": [...], "edges": [...]}` or `[counts, edges]`."""
    if isinstance(value, Mapping):
        counts, edges = value.get("counts"), value.get("edges")
    elif isinstance(value, list) and len(value) == 2:
        counts, edges = value
    else:
        return None
    if not isinstance(counts, list) or not isinstance(edges, list):
        return None
    heights = tuple(number for item in counts if (number := as_float(item)) is not None)
    bounds = tuple(number for item in edges if (number := as_float(item)) is not None)
    return Histogram(bounds, heights) if heights and len(bounds) == len(heights) + 1 else None
