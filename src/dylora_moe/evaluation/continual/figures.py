"""The drawings of a run: accuracy by arm, accuracy matrices, accuracy over visits, experts grown.

PNG, in the colours of the reports. Knows figures of arms; computes none.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from dylora_moe.evaluation.continual.measures import ArmFigures
from dylora_moe.evaluation.figures.canvas import shorten
from dylora_moe.evaluation.figures.style import (
    CYCLE,
    light,
    ramp_colour,
    ramp_ink,
    settings,
    shade,
)

OURS = "ours"
_Paint = Callable[[Figure], None]
_COLUMNS = 3
"""Matrices side by side."""


def drawings(
    figures: Sequence[ArmFigures], grown: Mapping[str, Mapping[str, Any]]
) -> dict[str, bytes]:
    """Every drawing there is something for, as PNG, by what its file's name ends with.

    Args:
        figures: of all arms and streams.
        grown: by stream: `grown`, experts after each batch; `true`, skills that had appeared by
            then.
    """
    streams = list(dict.fromkeys(one.stream for one in figures))
    first = next((s for s in streams if s.startswith("hard")), streams[0] if streams else "")
    arms = [one for one in figures if one.stream == first]
    found = {}
    if arms:
        found[""] = _png(8, 1.1 + 0.36 * len(arms), lambda f: _bars(f.add_subplot(), arms, first))
    with_matrix = [one for one in arms if one.matrix]
    if with_matrix:
        lines = -(-len(with_matrix) // _COLUMNS)
        height = 0.9 + 0.3 * len(with_matrix[0].matrix)
        found["-matrices"] = _png(11, height * lines, lambda f: _matrices(f, with_matrix))
        found["-visits"] = _png(8, 4.6, lambda f: _visits(f, with_matrix))
    if grown:
        found["-experts"] = _png(8, 3.4, lambda f: _grown(f, grown))
    return found


def _png(width: float, height: float, paint: _Paint) -> bytes:
    with rc_context(settings()):
        figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _bars(axes: Axes, arms: Sequence[ArmFigures], stream: str) -> None:
    """Accuracy of each arm after the stream with its interval over rows; the best on top."""
    ranked = sorted(arms, key=lambda one: one.accuracy.value)
    for place, one in enumerate(ranked):
        value, colour = 100 * one.accuracy.value, light("blue" if one.arm == OURS else "grey")
        axes.barh(place, value, height=0.66, color=colour)
        ends = [[value - 100 * one.accuracy.low], [100 * one.accuracy.high - value]]
        axes.errorbar(value, place, xerr=ends, fmt="none", ecolor=light("ink"), capsize=2.5, lw=1)
        axes.annotate(
            f"{value:.1f}", (100 * one.accuracy.high, place), (6, 0), va="center",
            textcoords="offset points", size=9, color=light("muted"),
        )  # fmt: skip
    axes.set_yticks(range(len(ranked)), [one.arm for one in ranked])
    axes.tick_params(axis="y", labelcolor=light("ink"))
    axes.set_xlim(0, max(5.0, 108 * max(one.accuracy.high for one in ranked)))
    axes.set_xlabel("average accuracy over skills (%), 95% interval over test rows")
    axes.set_title(f"After the last visit, {stream} stream")
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")


def _matrices(figure: Figure, arms: Sequence[ArmFigures]) -> None:
    """Rows are visits, columns skills; the framed cell is the visit to that skill."""
    lines = -(-len(arms) // _COLUMNS)
    for place, one in enumerate(arms):
        axes = figure.add_subplot(lines, _COLUMNS, place + 1)
        skills = list(one.by_skill)
        for i, line in enumerate(one.matrix):
            for j, value in enumerate(line):
                if value is None:
                    continue
                step = shade(value)
                axes.add_patch(
                    Rectangle((j + 0.03, i + 0.04), 0.94, 0.92, color=ramp_colour(step), lw=0)
                )
                axes.text(
                    j + 0.5, i + 0.52, f"{100 * value:.0f}", ha="center", va="center", size=8,
                    color=ramp_ink(step),
                )  # fmt: skip
                if one.visits[i] == skills[j]:
                    frame = Rectangle((j + 0.03, i + 0.04), 0.94, 0.92, fill=False, lw=1.5)
                    frame.set_edgecolor(light("orange"))
                    axes.add_patch(frame)
        axes.set_xlim(0, len(skills))
        axes.set_ylim(len(one.matrix), 0)
        axes.set_xticks(
            [j + 0.5 for j in range(len(skills))], [shorten(s, 9) for s in skills],
            rotation=40, ha="right", rotation_mode="anchor", size=8,
        )  # fmt: skip
        axes.set_yticks(
            [i + 0.52 for i in range(len(one.visits))], [shorten(v, 10) for v in one.visits], size=8
        )
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_title(one.arm, size=10)


def _visits(figure: Figure, arms: Sequence[ArmFigures]) -> None:
    """The mean over the skills learned so far, after each visit."""
    axes = figure.add_subplot()
    ranked = sorted(arms, key=lambda one: (one.arm != OURS, -one.accuracy.value))
    for place, one in enumerate(ranked):
        skills, values = list(one.by_skill), []
        for i, line in enumerate(one.matrix):
            seen = set(one.visits[: i + 1])
            known = [v for s, v in zip(skills, line, strict=True) if s in seen and v is not None]
            values.append(100 * sum(known) / max(1, len(known)))
        axes.plot(
            range(1, len(values) + 1), values, marker="o", ms=3.5, label=one.arm,
            color=light(CYCLE[place % len(CYCLE)]), lw=2.6 if one.arm == OURS else 1.5,
            ls=("-", "--", ":")[place // len(CYCLE) % 3],
        )  # fmt: skip
    first = arms[0]
    axes.set_xticks(
        range(1, len(first.visits) + 1),
        [f"{n} {shorten(v, 12)}" for n, v in enumerate(first.visits, 1)],
    )
    axes.set_ylim(0, 100)
    axes.set_ylabel("accuracy (%)")
    axes.set_title("Mean accuracy of the skills learned so far, after each visit")
    figure.legend(loc="outside lower center", ncols=min(4, len(ranked)), fontsize=9)


def _grown(figure: Figure, grown: Mapping[str, Mapping[str, Any]]) -> None:
    """Experts after each batch, and the skills that had appeared by then."""
    axes = figure.add_subplot()
    for place, (stream, one) in enumerate(grown.items()):
        batches = range(1, len(one["grown"]) + 1)
        colour = light(CYCLE[place % len(CYCLE)])
        axes.step(batches, one["grown"], where="post", color=colour, label=f"experts, {stream}")
        axes.step(
            batches, one["true"], where="post", color=colour, ls=":", lw=1.4,
            label=f"true skills, {stream}",
        )  # fmt: skip
    axes.set_xlabel("batch")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.set_ylim(0)
    axes.set_title("Experts grown over the stream")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
