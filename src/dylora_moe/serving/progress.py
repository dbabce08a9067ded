"""How far a job is, read from what its command writes: stages on stderr, numbers in its run's log.

Knows two formats of lines; knows no processes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"^ {4}(?P<stage>\w[^:]*?)(?: \.\.\.|: (?P<done>\d+)/(?P<total>\d+)\b.*)$")
_TAIL = 1 << 14
"""Bytes of a file's end that are looked at: some dozens of lines."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job is.

    Attributes:
        stage: of the command, e.g. `training expert_3 on 128 rows`; empty before the first.
        share: of the stage that is done, 0 to 1.
        phase: of a training; empty outside of one.
        loss: the last one logged; None before.
    """

    stage: str = ""
    share: float = 0.0
    phase: str = ""
    loss: float | None = None


def read_progress(log: Path, runs: Path, since: float) -> Progress:
    """The last word of a command.

    Args:
        log: its stderr.
        runs: the pool's folder `runs`.
        since: seconds since the epoch when it began; logs of runs that are older are of others.
    """
    stage, share = "", 0.0
    for line in _last_lines(log):
        found = _LINE.match(line)
        if found is not None:
            stage = found["stage"].strip()
            share = int(found["done"]) / max(1, int(found["total"])) if found["done"] else 0.0
    phase, loss = _training(runs, since)
    return Progress(stage, share, phase, loss)


def _training(runs: Path, since: float) -> tuple[str, float | None]:
    """Phase and loss of the run that logged last."""
    newest: tuple[float, Path] | None = None
    for file in runs.glob("*/metrics.jsonl") if runs.is_dir() else ():
        try:
            changed = file.stat().st_mtime
        except FileNotFoundError:
            continue
        if changed >= since and (newest is None or changed > newest[0]):
            newest = (changed, file)
    phase, loss = "", None
    for line in _last_lines(newest[1]) if newest is not None else ():
        try:
            values = json.loads(line)
        except ValueError:
            # The last line may be half written, the first half read.
            continue
        if isinstance(values, dict):
            phase = str(values.get("phase", phase))
            found = values.get("loss")
            loss = float(found) if isinstance(found, int | float) else loss
    return phase, loss


def _last_lines(file: Path) -> list[str]:
    try:
        with file.open("rb") as opened:
            opened.seek(0, 2)
            opened.seek(max(0, opened.tell() - _TAIL))
            return opened.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []
