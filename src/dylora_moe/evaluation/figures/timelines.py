"""Curves over training time: one axis of steps through all runs, with a mark where each begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from dylora_moe.build.run_logs import Run, timeline
from dylora_moe.evaluation.figures.canvas import Panel, draw, legend_below, shorten
from dylora_moe.evaluation.figures.style import light


@dataclass(frozen=True, slots=True)
class Line:
    """One key of the log as a line: `label` is empty where a single line needs none."""

    key: str
    label: str
    colour: str
    dash: str = "-"


def timeline_panel(
    name: str,
    title: str,
    runs: Sequence[Run],
    lines: Sequence[Line],
    word: Callable[[float], str] | None = None,
    log_scale: bool = False,
    ceiling: float | None = None,
) -> Panel | None:
    """Lines over the steps of all runs; None if no run logged any of them.

    Args:
        name: file name of the panel.
        title: what is drawn, with its unit.
        runs: in order.
        lines: what to draw.
        word: how a value is written at the axis.
        log_scale: for values over several powers of ten.
        ceiling: a bound to draw as a dashed line.
    """
    curves = [(line, timeline(runs, line.key)) for line in lines]
    curves = [(line, found) for line, found in curves if found]
    if not curves:
        return None

    def paint(axes: Axes) -> None:
        for line, pieces in curves:
            for k, (_, positions, values) in enumerate(pieces):
                axes.plot(
                    positions, values, color=line.colour, ls=line.dash,
                    marker="o" if len(values) == 1 else "", ms=4.5,
                    label=shorten(line.label, 22) if k == 0 and line.label else None,
                )  # fmt: skip
        if log_scale and all(v > 0 for _, pieces in curves for _, _, vs in pieces for v in vs):
            axes.set_yscale("log")
            axes.set_ylim(top=axes.get_ylim()[1] * 1.6)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            if ceiling is not None:
                axes.axhline(ceiling, color=light("muted"), lw=1.2, ls=(0, (4, 3)))
            bottom, top = axes.get_ylim()
            # Room above for the numbers of the runs.
            axes.set_ylim(min(0.0, bottom), top * 1.1)
        if word is not None:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: word(value)))
        mark_runs(axes, runs)
        axes.set_title(title)
        axes.set_xlabel("training step, all runs")
        if any(line.label for line, _ in curves):
            legend_below(axes)

    extra = 16 * ((len(curves) + 2) // 3) if any(line.label for line, _ in curves) else 0
    return draw(name, f"{title}. {_in_words(curves, word)}", paint, height=225 + extra)


def mark_runs(axes: Axes, runs: Sequence[Run]) -> None:
    """A fine line where each run begins, and the number of its step."""
    start = 0.0
    for run in runs:
        if run.length:
            axes.axvline(start, color=light("line"), lw=0.9, zorder=0)
            axes.annotate(
                "" if run.number is None else str(run.number), (start, 1),
                xycoords=("data", "axes fraction"), xytext=(2, -2),
                textcoords="offset points", va="top", size=8.5, color=light("grey"),
            )  # fmt: skip
        start += run.length
    axes.set_xlim(-0.01 * start, start * 1.01 or 1)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _in_words(
    curves: Sequence[tuple[Line, list[tuple[Run, list[float], list[float]]]]],
    word: Callable[[float], str] | None,
) -> str:
    say = word or (lambda value: f"{value:.3g}")
    told = []
    for line, pieces in curves:
        first, last = pieces[0][2][0], pieces[-1][2][-1]
        told.append(f"{line.label or 'The value'} goes from {say(first)} to {say(last)}")
    return "; ".join(told) + "."
