"""A run's results as small files: JSON with figures and scoreboard rows, Markdown, drawings.

Knows figures and where they are written; computes none of them, and runs no arm.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dylora_moe.evaluation.continual.checks import Check, checks
from dylora_moe.evaluation.continual.detecting import Detected
from dylora_moe.evaluation.continual.goals import Evidence, GoalRow, Table, table
from dylora_moe.evaluation.continual.measures import ArmFigures, figures
from dylora_moe.evaluation.continual.presets import Preset
from dylora_moe.evaluation.continual.results import ArmResult
from dylora_moe.evaluation.files import write_whole
from dylora_moe.evaluation.markdown import escape
from dylora_moe.evaluation.quantities import MISSING, count, decimal, duration, percent, points
from dylora_moe.records import Interval

_LIBRARIES = ("torch", "transformers", "peft")


@dataclass(frozen=True)
class Document:
    """All that is told of a run.

    Attributes:
        preset: what was run.
        command: that makes it again.
        figures: of each arm on each stream.
        table: what is claimed.
        grown: experts over each stream, for the drawing.
        novelty: what the novelty detectors gave.
        neighbours: groups of skills that are near each other.
        checks: of the bench itself.
        seconds: of all arms together.
    """

    preset: Preset
    command: str
    figures: tuple[ArmFigures, ...]
    table: Table
    grown: Mapping[str, Mapping[str, Any]]
    novelty: Detected
    neighbours: tuple[tuple[str, ...], ...]
    checks: tuple[Check, ...]
    seconds: float


def document(
    preset: Preset,
    results: Sequence[ArmResult],
    command: str,
    novelty: Detected | None = None,
) -> Document:
    """Computes every figure of a run.

    Args:
        preset: what was run.
        results: of all arms that ran.
        command: that makes it again.
        novelty: what the novelty detectors gave; None where none were asked.
    """
    near = neighbours(preset, novelty)
    found: dict[tuple[str, str], list[ArmResult]] = {}
    for result in results:
        found.setdefault((result.stream, result.arm), []).append(result)
    by_arm = {
        (stream, arm): figures(
            some,
            base=found.get((stream, "base")) or found.get(("hard", "base")) or (),
            neighbours=near,
        )
        for (stream, arm), some in found.items()
    }
    return Document(
        preset=preset,
        command=command,
        figures=tuple(by_arm.values()),
        table=table(Evidence(found, by_arm, novelty.screening if novelty else {})),
        grown={
            stream: _growth(some[0])
            for (stream, arm), some in found.items()
            if arm == "ours" and "read_off" not in some[0].details
        },
        novelty=novelty or Detected(),
        neighbours=near,
        checks=checks(found),
        seconds=sum(one.seconds for one in results if "read_off" not in one.details),
    )


def neighbours(preset: Preset, novelty: Detected | None) -> tuple[tuple[str, ...], ...]:
    """The preset's groups of near skills, as far as they are learned; where none is, the two that
    are told apart worst."""
    there = tuple(group for group in preset.neighbours if set(group) <= set(preset.skills))
    if there or novelty is None or not novelty.nearest:
        return there
    return (novelty.nearest,)


def write(found: Document, folder: Path) -> list[Path]:
    """Writes `<preset>.json`, `<preset>.md` and the drawings; the files, in that order."""
    # The one heavy import of this module: figures alone need it.
    from dylora_moe.evaluation.continual.figures import drawings

    name = found.preset.name
    paths = [folder / f"{name}.json", folder / f"{name}.md"]
    drawn = drawings(found.figures, found.grown)
    write_whole(paths[0], to_json(found))
    write_whole(paths[1], to_markdown(found, [f"{name}{end}.png" for end in drawn]))
    for end, body in drawn.items():
        path = folder / f"{name}{end}.png"
        path.write_bytes(body)
        paths.append(path)
    return paths


def to_json(found: Document) -> str:
    """The document as JSON; its `rows` are those of the scoreboard."""
    preset = found.preset
    body = {
        "benchmark": f"continual/{preset.name}",
        "title": f"Continual learning on a stream of skills, preset {preset.name}",
        "compared": _compared(preset),
        "command": found.command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": {name: version(name) for name in _LIBRARIES},
        "settings": asdict(preset),
        "neighbours": list(found.neighbours),
        "rows": [asdict(row) for row in (*found.table.rows, *found.table.absent)],
        "missing": list(found.table.missing),
        "checks": [asdict(one) for one in found.checks],
        "arms": [asdict(one) for one in found.figures],
        "grown": found.grown,
        "detectors": list(found.novelty.replayed),
        "unseen": found.novelty.unseen,
        "seconds": found.seconds,
    }
    return json.dumps(body, ensure_ascii=False, allow_nan=False, indent=1, default=str) + "\n"


def to_markdown(found: Document, drawn: Sequence[str]) -> str:
    """The document as a page; `drawn` are the drawings beside it."""
    preset = found.preset
    parts = [
        f"# Continual learning, preset {preset.name}",
        f"{_compared(preset)}. All arms together took {duration(found.seconds)}.",
        f"```bash\n{found.command}\n```",
        "## What it has to show",
        _lines(
            ("claim", "value", "95% interval", "must", "aim"),
            [_claim(row) for row in found.table.rows],
        ),
    ]
    wrong = [f"**Wrong**: {escape(one.what)}" for one in found.checks if not one.holds]
    parts += ["\n\n".join(wrong)] * bool(wrong)
    if found.table.missing:
        parts.append("Not in this run: " + "; ".join(escape(one) for one in found.table.missing))
    for stream in dict.fromkeys(one.stream for one in found.figures):
        arms = [one for one in found.figures if one.stream == stream]
        parts += [f"## Arms on the {stream} stream", _arms(arms), _costs(arms)]
    if found.novelty.replayed:
        parts += ["## Novelty detectors, replayed on the same batches", _detectors(found.novelty)]
    parts += [f"![{name}]({name})" for name in drawn]
    return "\n\n".join(parts) + "\n"


def machine() -> dict[str, Any]:
    """Processor, cores, threads, memory; the GPU where there is one."""
    import psutil
    import torch

    info, processor = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if info.exists():
        lines = info.read_text(errors="replace").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = named[0] if named else processor
    found: dict[str, Any] = {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
    return found


def _compared(preset: Preset) -> str:
    return (
        f"{preset.rows} rows a visit in batches of {preset.batch}, {preset.test_rows} test rows a "
        f"skill, skills {', '.join(preset.skills)}, streams {', '.join(preset.streams)}, seeds "
        f"{', '.join(str(seed) for seed in preset.seeds)}"
    )


def _growth(result: ArmResult) -> dict[str, Any]:
    """Experts and true skills after each batch."""
    seen: set[str] = set()
    true = []
    for one in result.details.get("arrivals", ()):
        # A few rows that strayed over a blurred switch are no skill yet.
        most = max(one["skills"].values())
        seen |= {skill for skill, rows in one["skills"].items() if rows == most}
        true.append(len(seen))
    return {"grown": list(result.details.get("grown_after_batch", ())), "true": true}


def _claim(row: GoalRow) -> tuple[str, ...]:
    sign = "≤" if row.direction == "at most" else "≥"
    return (
        escape(row.measure) + (f" ({escape(row.note)})" if row.note else ""),
        MISSING if row.value is None else f"{row.value:.3g}",
        row.between or MISSING,
        MISSING if row.must is None else f"{sign} {row.must:g}",
        MISSING if row.aim is None else f"{sign} {row.aim:g}",
    )


def _arms(arms: Sequence[ArmFigures]) -> str:
    rows = []
    for one in sorted(arms, key=lambda arm: -arm.accuracy.value):
        transfer = one.backward_transfer
        rows.append((
            one.arm, _spread(one.accuracy), percent(one.exact.value), percent(one.f1.value),
            decimal(one.loss), points(transfer.value if transfer else None),
            points(one.forgetting), points(one.forward_transfer),
            percent(one.routing.value if one.routing else None),
            decimal(one.calibration_error),
        ))  # fmt: skip
    titles = (
        "arm", "accuracy", "exact", "token F1", "loss", "backward transfer", "forgetting",
        "forward transfer", "routing", "calibration error",
    )  # fmt: skip
    return _lines(titles, rows)


def _costs(arms: Sequence[ArmFigures]) -> str:
    rows = []
    for one in arms:
        found = one.borders
        rows.append((
            one.arm, MISSING if one.experts is None else f"{one.experts:g} of {one.skills}",
            percent(found.precision) if found else MISSING,
            percent(found.recall) if found else MISSING,
            decimal(found.mean_delay, 1) if found else MISSING,
            count(one.parameters), count(one.parameters_in_use), count(one.trained_tokens),
            duration(one.seconds), decimal(one.base_loss, 4),
        ))  # fmt: skip
    titles = (
        "arm", "experts of skills", "borders: precision", "recall", "delay (batches)",
        "parameters", "in use", "trained tokens", "time", "loss on text of no skill",
    )  # fmt: skip
    return _lines(titles, rows)


def _detectors(novelty: Detected) -> str:
    rows = []
    for one in novelty.replayed:
        if one["skipped"]:
            rows.append((one["stream"], one["detector"], escape(one["skipped"]), *[MISSING] * 5))
            continue
        found = one["borders"] or {}
        rows.append((
            one["stream"], one["detector"], f"{one['experts']} of {one['true_skills']}",
            count(one["again"]), count(one["returned"]), percent(found.get("precision")),
            percent(found.get("recall")), decimal(found.get("delay"), 1),
        ))  # fmt: skip
    titles = (
        "stream", "detector", "experts of skills", "for a skill that had one",
        "for one that returned", "borders: precision", "recall", "delay (batches)",
    )  # fmt: skip
    return _lines(titles, rows)


def _spread(found: Interval) -> str:
    return f"{percent(found.value)} ({percent(found.low)} to {percent(found.high)})"


def _lines(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
