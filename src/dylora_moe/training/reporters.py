"""Where numbers go as they fall: the run's own log, and several places at once.

Knows files and names of numbers; TensorBoard and W&B have a file each. A value is a number, a text,
a list of numbers (shown as its histogram), or a histogram already: `{"counts": [...], "edges":
[...]}` with one edge more than counts.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Protocol

from dylora_moe.errors import MissingExtraError, StorageFullError
from dylora_moe.ports import Reporter

METRICS_FILE = "metrics.jsonl"


class ReporterFactory(Protocol):
    """Makes a reporter for a run folder, under a run's name."""

    def __call__(self, folder: Path, name: str) -> Reporter: ...


class JsonlReporter:
    """One line of `metrics.jsonl` in the run's folder for every call: time, step, values.

    A run that was resumed appends; where a step stands twice, the later line counts.

    Args:
        folder: the run's folder; made if it is not there.
        clock: seconds since the epoch.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / METRICS_FILE
        self._clock = clock
        self._file: TextIOWrapper | None = self._path.open("a", encoding="utf-8")

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        """Writes one line; numbers that JSON has no word for (nan, inf) become null.

        Raises:
            StorageFullError: the disk takes no more.
        """
        if self._file is None:
            return
        line: dict[str, Any] = {"time": round(self._clock(), 3)}
        if step is not None:
            line["step"] = step
        line.update({key: _plain(value) for key, value in values.items()})
        try:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise StorageFullError(
                f"{self._path} cannot be written ({error.strerror}); free some space and resume"
            ) from error

    def close(self) -> None:
        """Closes the file; later calls do nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Reporters:
    """Hands everything to each of several reporters, in order."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = tuple(reporters)

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        for reporter in self._reporters:
            reporter.log(values, step)

    def close(self) -> None:
        """Closes every one, also when one fails; the first failure is raised at the end."""
        failures: list[Exception] = []
        for reporter in self._reporters:
            try:
                reporter.close()
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]


def missing_extra(what: str, extra: str, error: ImportError) -> MissingExtraError:
    """The error for an optional dependency that is not installed."""
    return MissingExtraError(
        f"reporting to {what} needs the package {error.name or extra}, which is not installed; "
        f'pip install "dylora-moe[{extra}]"'
    )


def numbers_of(values: dict[str, Any]) -> dict[str, float]:
    """The plain numbers among the values."""
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def histograms_of(values: dict[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    """The histograms among the values, as (counts, edges); lists of numbers become one."""
    found = {}
    for key, value in values.items():
        if isinstance(value, dict) and value.keys() == {"counts", "edges"} and value["counts"]:
            found[key] = (list(map(float, value["counts"])), list(map(float, value["edges"])))
        elif isinstance(value, list | tuple) and value:
            made = histogram([float(one) for one in value])
            found[key] = (list(map(float, made["counts"])), made["edges"])
    return found


def histogram(values: Sequence[float], bins: int = 16) -> dict[str, list[Any]]:
    """Counts of the values between equally wide edges, `{"counts": n, "edges": n + 1}`."""
    if not values:
        return {"counts": [], "edges": []}
    low, high = min(values), max(values)
    width = (high - low) / bins or 1.0
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / width))] += 1
    return {"counts": counts, "edges": [low + width * i for i in range(bins + 1)]}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return value
