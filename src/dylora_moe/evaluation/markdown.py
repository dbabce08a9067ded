"""The report as Markdown (GitHub's dialect), its figures as files beside it."""

from __future__ import annotations

import re

from dylora_moe.evaluation.document import Document, Section
from dylora_moe.evaluation.figures.canvas import ReportFigure
from dylora_moe.evaluation.table import Table

_SPECIAL = re.compile(r"([\\`*\[\]<>|~])")
_LOOSE_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def to_markdown(document: Document, figures: str) -> str:
    """Renders a document; `figures` is the folder of the SVG files, relative to the report."""
    parts = [
        f"# {escape(document.title)}",
        escape(document.lede),
        f"**{escape(document.headline)}**",
        " · ".join(f"{tile.label}: **{escape(tile.value)}**" for tile in document.tiles),
    ]
    for section in document.sections:
        parts.extend(_section(section, figures))
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is, in a paragraph or a table's cell."""
    flat = " ".join(text.split())
    return _LOOSE_UNDERSCORE.sub(r"\\_", _SPECIAL.sub(r"\\\1", flat.replace("&", "&amp;")))


def _section(section: Section, figures: str) -> list[str]:
    parts = [f"## {escape(section.title)}", escape(section.lead)]
    for block in section.blocks:
        parts.extend(_table(block) if isinstance(block, Table) else _figure(block, figures))
    for table in section.details:
        parts.extend(_table(table) if table.rows else ())
    return parts


def _figure(figure: ReportFigure, folder: str) -> list[str]:
    images = "\n".join(
        f"![{escape(panel.alt)}]({folder}/{panel.name}.svg)" for panel in figure.panels
    )
    caption = escape(figure.caption)
    return [f"### {escape(figure.title)}", images, f"*{caption}*" if images else caption]


def _table(table: Table) -> list[str]:
    if not table.rows:
        return [escape(table.empty)]
    cells = [
        [escape(column.title) for column in table.columns],
        *([escape(cell) for cell in row] for row in table.rows),
    ]
    widths = [max(3, *(len(row[k]) for row in cells)) for k in range(len(table.columns))]
    right = [column.align == "right" for column in table.columns]
    rules = [
        "-" * (width - 1) + ":" if aligned else "-" * width
        for width, aligned in zip(widths, right, strict=True)
    ]
    lines = [_line(row, widths, right) for row in cells]
    lines.insert(1, "| " + " | ".join(rules) + " |")
    return [f"**{escape(table.caption)}**", "\n".join(lines)]


def _line(row: list[str], widths: list[int], right: list[bool]) -> str:
    padded = (
        cell.rjust(width) if aligned else cell.ljust(width)
        for cell, width, aligned in zip(row, widths, right, strict=True)
    )
    return "| " + " | ".join(padded) + " |"
