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

from dylora_moe.build.json_values import as_float, as_mapping, as_text

LOG = "metrics.jsonl"
HISTOGRAM_KEY = "packed_sequence_length_histogram"
_PLACE = ("time", "phase", "step", "epoch", "warning")


@dataclass(frozen=True, slots=True)
class Point:
    """One logged number. `position` counts updates over all phases of the run."""

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
    lines that could not be read; `started` is the time of its first line, seconds since the epoch.
    """

    run_id: str
    number: int | None
    name: str
    phases: tuple[PhaseSpan, ...]
    curves: Mapping[str, tuple[Point, ...]]
    histogram: Histogram | None
    warnings: tuple[str, ...] = ()
    damaged: int = 0
    started: float | None = None

    @property
    def label(self) -> str:
        return self.name if self.number is None else f"{self.number}  {self.name}"

    @property
    def length(self) -> float:
        """Updates of the whole run."""
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
    for path in sorted(folder.glob(f"*/{LOG}")):
        run_id = path.parent.name
        number, name = steps.get(run_id, (None, run_id))
        run = read_run(path.parent, number, name)
        place = math.inf if number is None else float(number)
        found.append((place, run.started or 0.0, run_id, run))
    return tuple(item[-1] for item in sorted(found, key=lambda item: item[:3]))


def read_run(folder: Path, number: int | None = None, name: str | None = None) -> Run:
    """The run in a folder; one without a line where it has logged nothing yet.

    Args:
        folder: of the run; named by its id.
        number, name: of the run's step, where one is known; its id where None.
    """
    log = folder / LOG
    lines, damaged = _lines(log) if log.is_file() else ([], 0)
    return _run(folder.name, number, name or folder.name, lines, damaged)


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
    spans: list[PhaseSpan] = []
    histograms: list[Histogram] = []
    warnings: dict[str, None] = {}
    phase = ""
    for line in lines:
        warning, position = as_text(line.get("warning")), as_float(line.get("step"))
        if warning is not None:
            warnings[warning] = None
        if position is None:
            continue
        phase = as_text(line.get("phase")) or phase or "training"
        spans = _extended(spans, phase, position)
        packed = _histogram(line.get(HISTOGRAM_KEY))
        histograms.extend([packed] if packed is not None else [])
        for key, value in _numbers(line):
            points = curves.setdefault(key, [])
            # A resumed run repeats the steps since its checkpoint: the later line counts.
            while points and points[-1].position >= position:
                points.pop()
            points.append(Point(position, phase, value))
    return Run(
        run_id=run_id,
        number=number,
        name=name,
        phases=tuple(spans),
        curves={key: tuple(points) for key, points in curves.items()},
        histogram=summed(histograms),
        warnings=tuple(warnings),
        damaged=damaged,
        started=as_float(lines[0].get("time")) if lines else None,
    )


def _extended(spans: list[PhaseSpan], phase: str, position: float) -> list[PhaseSpan]:
    """The phases after a line of `phase` at `position`; those it goes back behind are redone."""
    kept = [span for span in spans if span.start < position or span.name == phase]
    if kept and kept[-1].name == phase:
        last = kept.pop()
        return [*kept, PhaseSpan(phase, last.start, max(last.end, position))]
    start = min(kept[-1].end, position) if kept else 0.0
    return [*kept, PhaseSpan(phase, start, position)]


def summed(found: Sequence[Histogram]) -> Histogram | None:
    """All histograms as one. Where their edges differ, the counts of a bin are spread evenly over
    the new bins that it covers."""
    if not found:
        return None
    edges = found[0].edges
    if any(histogram.edges != edges for histogram in found):
        low = min(histogram.edges[0] for histogram in found)
        high = max(histogram.edges[-1] for histogram in found)
        n_bins = max(len(histogram.counts) for histogram in found)
        edges = tuple(low + (high - low) * i / n_bins for i in range(n_bins + 1))
    counts = [0.0] * (len(edges) - 1)
    for histogram in found:
        for k, number in enumerate(histogram.counts):
            start, end = histogram.edges[k], histogram.edges[k + 1]
            for i in range(len(counts)):
                covered = min(end, edges[i + 1]) - max(start, edges[i])
                if covered > 0 and end > start:
                    counts[i] += number * covered / (end - start)
    return Histogram(edges, tuple(counts))


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
