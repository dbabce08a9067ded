"""The report as one HTML file that needs nothing else: styles and drawings are inside.

Knows markup; what is said comes from the document. Colours of the drawings are CSS variables, so
that they follow the reader's light or dark preference.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources

from dylora_moe.evaluation.document import Document, Section, Tile
from dylora_moe.evaluation.figures.canvas import WIDTH, Panel, ReportFigure
from dylora_moe.evaluation.figures.style import VERDICTS, variables
from dylora_moe.evaluation.table import Column, Table


def to_html(document: Document) -> str:
    """Renders a document."""
    title = escape(document.title)
    links = "".join(
        f'<li><a href="#{section.anchor}">{escape(section.title)}</a></li>'
        for section in document.sections
    )
    tiles = "".join(_tile(tile) for tile in document.tiles)
    state = "good" if document.good else "mixed"
    sections = "\n".join(_section(section) for section in document.sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · pool report</title>
<style>
{_styles()}</style>
</head>
<body>
<header>
<p class="kicker">Pool report</p>
<h1>{title}</h1>
<p class="lede">{escape(document.lede)}</p>
<p class="headline {state}">{escape(document.headline)}</p>
<dl class="tiles">{tiles}</dl>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{sections}
</main>
</body>
</html>
"""


def _styles() -> str:
    page = resources.files("dylora_moe.evaluation").joinpath("page.css").read_text("utf-8")
    light = "".join(f"  {name}: {shades[0]};\n" for name, shades in variables().items())
    dark = "".join(f"    {name}: {shades[1]};\n" for name, shades in variables().items())
    return (
        f":root {{\n{light}}}\n"
        f"@media (prefers-color-scheme: dark) {{\n  :root {{\n{dark}  }}\n}}\n{page}"
    )


def _tile(tile: Tile) -> str:
    return (
        f"<div><dt>{escape(tile.label)}</dt><dd>{escape(tile.value)}"
        f"<small>{escape(tile.note)}</small></dd></div>"
    )


def _section(section: Section) -> str:
    lead = f"<p>{escape(section.lead)}</p>" if section.lead else ""
    lonely = _lonely(section.blocks)
    blocks = [
        _table(block) if isinstance(block, Table) else _figure(block, index in lonely)
        for index, block in enumerate(section.blocks)
    ]
    details = "".join(
        f"<details><summary>{escape(table.caption)}</summary>{_table(table)}</details>"
        for table in section.details
        if table.rows
    )
    return (
        f'<section id="{section.anchor}" aria-labelledby="{section.anchor}-title">'
        f'<h2 id="{section.anchor}-title">{escape(section.title)}</h2>{lead}'
        f'<div class="blocks">{"".join(blocks)}</div>{details}</section>'
    )


def _lonely(blocks: Sequence[ReportFigure | Table]) -> set[int]:
    """Blocks of half the page's width that have no neighbour of half a width to stand beside."""
    found: set[int] = set()
    open_half: int | None = None
    for index, block in enumerate(blocks):
        if isinstance(block, ReportFigure) and _is_half(block):
            open_half = index if open_half is None else None
        elif open_half is not None:
            found.add(open_half)
            open_half = None
    return found if open_half is None else found | {open_half}


def _is_half(figure: ReportFigure) -> bool:
    return len(figure.panels) < 2 and not any(panel.wide for panel in figure.panels)


def _figure(figure: ReportFigure, wide: bool) -> str:
    name, title, caption = figure.name, escape(figure.title), escape(figure.caption)
    if not figure.panels:
        width = " wide" if wide else ""
        return (
            f'<div class="block empty{width}" data-figure="{name}"><h3>{title}</h3>'
            f"<p>{caption}</p></div>"
        )
    spread = "half" if _is_half(figure) and not wide else "wide"
    # The caption of a wide figure takes the place that an odd number of panels leaves free.
    n_cells = len(figure.panels) + sum(panel.wide for panel in figure.panels)
    free = " beside" if spread == "wide" and n_cells % 2 else ""
    panels = "".join(_panel(panel) for panel in figure.panels)
    return (
        f'<figure class="block {spread}{free}" data-figure="{name}"><h3>{title}</h3>'
        f"{panels}<figcaption>{caption}</figcaption></figure>"
    )


def _panel(panel: Panel) -> str:
    # A drawing shrinks to a phone's width down to where its letters stay legible, then scrolls.
    narrow = 0.78 if panel.width <= WIDTH else 0.87
    widest, narrowest = round(panel.width * 1.4), round(panel.width * narrow)
    return (
        f'<div class="panel{" broad" if panel.wide else ""}" tabindex="0" role="group" '
        f'aria-label="{escape(panel.alt)}" '
        f'style="--widest: {widest}px; --narrowest: {narrowest}px">{panel.inline()}</div>'
    )


def _table(table: Table) -> str:
    if not table.rows:
        return f'<p class="block empty" data-table="{table.name}">{escape(table.empty)}</p>'
    head = "".join(
        f'<th scope="col" class="{column.align}">{escape(column.title)}</th>'
        for column in table.columns
    )
    body = "".join(
        "<tr>"
        + "".join(_cell(column, cell) for column, cell in zip(table.columns, row, strict=True))
        + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="block table" data-table="{table.name}" tabindex="0" role="region" '
        f'aria-label="{escape(table.caption)}"><table><caption><span>{escape(table.caption)}</span></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(column: Column, cell: str) -> str:
    text = escape(cell)
    if column.kind == "verdict" and cell in VERDICTS:
        text = f'<span class="verdict {cell}">{text}</span>'
    return f'<td class="{column.align}">{text}</td>'
