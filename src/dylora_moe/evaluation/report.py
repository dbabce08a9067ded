"""Writes the report of a pool: Markdown, HTML, JSON and the figures.

Knows files; what they say comes from the document.
"""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dylora_moe.build.json_values import as_mapping
from dylora_moe.errors import PoolError, StorageFullError
from dylora_moe.evaluation.document import Document, compose, panels_of
from dylora_moe.evaluation.files import write_whole
from dylora_moe.evaluation.history import History, collect
from dylora_moe.evaluation.html import to_html
from dylora_moe.evaluation.markdown import to_markdown
from dylora_moe.evaluation.matrix import Matrices, build_matrices
from dylora_moe.evaluation.summary import Summary, summary
from dylora_moe.evaluation.table import as_records
from dylora_moe.ports import ArtifactStore, Registry

FIGURES = "figures"
"""Folder of the SVG files, beside the Markdown."""


@dataclass(frozen=True, slots=True)
class Report:
    """Where the report lies: the Markdown needs `figures/` beside it, the HTML nothing."""

    markdown: Path
    html: Path
    data: Path


def write_report(
    pool_root: Path, registry: Registry, artifacts: ArtifactStore, folder: Path | None = None
) -> Report:
    """Writes `report.md`, `report.html`, `report.json` and `figures/*.svg`.

    The same history gives the same bytes: there is no date but those in the data.

    Args:
        pool_root: the pool's folder.
        registry: its revisions and events.
        artifacts: opens its scores.
        folder: where to write; `report` in the pool where not given.

    Raises:
        ArtifactError: a scores file is missing or damaged.
        PoolError: the folder cannot be written.
        StorageFullError: the disk is full.
    """
    history = collect(registry, artifacts, pool_root)
    matrices = build_matrices(history)
    found = summary(history, matrices)
    document = compose(history, matrices, found)
    target = pool_root / "report" if folder is None else folder
    report = Report(target / "report.md", target / "report.html", target / "report.json")
    files = {f"{FIGURES}/{name}": svg for name, svg in panels_of([*document.figures()]).items()}
    files[report.markdown.name] = to_markdown(document, FIGURES)
    files[report.html.name] = to_html(document)
    files[report.data.name] = _json(history, matrices, found, document)
    try:
        stale = _earlier_figures(report.data) - set(files)
        for name, body in files.items():
            write_whole(target / name, body)
        for name in stale:
            (target / name).unlink(missing_ok=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageFullError(f"{target}: the disk is full; free some space") from error
        raise PoolError(
            f"{target}: the report cannot be written ({error.strerror}); choose another folder"
        ) from error
    return report


def _json(history: History, matrices: Matrices, found: Summary, document: Document) -> str:
    data: dict[str, Any] = {
        "pool": history.name,
        "summary": asdict(found),
        "matrices": asdict(matrices),
        "history": asdict(history),
        "tables": as_records([*document.tables()]),
        "figures": {
            figure.name: {
                "title": figure.title,
                "caption": figure.caption,
                "files": [f"{FIGURES}/{panel.name}.svg" for panel in figure.panels],
            }
            for figure in document.figures()
        },
    }
    return json.dumps(data, ensure_ascii=False, allow_nan=False, indent=1, default=str) + "\n"


def _earlier_figures(data: Path) -> set[str]:
    """Drawings of the report that lay here before; no others of that folder are ours to remove."""
    try:
        figures = as_mapping(json.loads(data.read_text("utf-8")).get("figures"))
    except (FileNotFoundError, ValueError, AttributeError):
        return set()
    names = (name for figure in figures.values() for name in as_mapping(figure).get("files", ()))
    return {f"{FIGURES}/{Path(str(name)).name}" for name in names}
