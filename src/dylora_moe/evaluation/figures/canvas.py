"""From a painter to SVG: the figure, its settings, and the text of the file.

Knows matplotlib and SVG; knows no data.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from dylora_moe.evaluation.figures.style import FONTS, settings, variables

WIDTH = 380
"""Width of a panel in points; about half the page, and a phone's screen."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One drawing. `svg` stands alone (light shades); `alt` says what it shows, in words."""

    name: str
    alt: str
    svg: str
    width: float

    @property
    def wide(self) -> bool:
        """Whether it wants the page's whole width."""
        return self.width > WIDTH * 1.25

    def inline(self) -> str:
        """The drawing as an element of a page: its colours are the page's variables."""
        body = self.svg[self.svg.index("<svg") :]
        return _TAG.sub(lambda tag: _with_variables(tag.group()), body)


@dataclass(frozen=True, slots=True)
class ReportFigure:
    """A figure of the report: panels under one title. Without data `panels` is empty, and
    `caption` is the sentence that says so."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]


def draw(
    name: str,
    alt: str,
    paint: Callable[[Axes], None],
    width: float = WIDTH,
    height: float = 250,
) -> Panel:
    """Paints one panel.

    Args:
        name: file name without its ending, unique in the report.
        alt: what the drawing shows, for those who cannot see it.
        paint: paints on the axes it is handed.
        width: in points, as `height`.
    """
    with matplotlib.rc_context(settings()), warnings.catch_warnings():
        # The browser's fonts have the letters that matplotlib's own lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return Panel(name, alt, _tidy(buffer.getvalue(), name, alt), float(width))


_TAG = re.compile(r"<[^>]*>")
_FONT = re.compile(r"font-family: [^;\"]*")
_COLOURS = {shades[0]: f"var({name})" for name, shades in variables().items()}
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")


def _tidy(svg: str, name: str, alt: str) -> str:
    """Takes out what leaks into a page or means nothing there: doctype, metadata, a style sheet
    for every element of the document, ids that other drawings have too."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.S)
    body = _TAG.sub(lambda tag: _local(tag.group(), name), body)
    label = html.escape(alt)
    root = f'<svg role="img" aria-label="{label}" style="stroke-linejoin: round" '
    return '<?xml version="1.0" encoding="utf-8"?>\n' + body.replace("<svg ", root, 1)


def _local(tag: str, name: str) -> str:
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'xlink:href="#', f'xlink:href="#{name}-', tag)
    tag = tag.replace("url(#", f"url(#{name}-")
    return _FONT.sub(f"font-family: {FONTS}", tag)


def _with_variables(tag: str) -> str:
    return _COLOUR.sub(lambda found: _COLOURS.get(found.group(), found.group()), tag)


def legend_below(axes: Axes, columns: int = 3, handles: Sequence[Artist] | None = None) -> None:
    """The legend under the axes, of the labelled artists where no handles are given."""
    shown = axes.get_legend_handles_labels()[0] if handles is None else handles
    figure = axes.get_figure()
    assert figure is not None
    figure.legend(
        handles=shown, loc="outside lower center", ncols=max(1, min(len(shown), columns)),
        handlelength=1.3, handletextpad=0.5, columnspacing=1.2, borderpad=0.1,
    )  # fmt: skip


def shorten(name: str, width: int = 16) -> str:
    """A name as a label: printable, at most `width` characters."""
    clean = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name
    )
    return clean if len(clean) <= width else clean[: width - 1] + "…"
