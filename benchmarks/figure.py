"""The figure of a benchmark: every arm's median with its rounds, in the colours of the reports.

Knows result files; knows nothing of how they came to be.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from measured import middle

from dylora_moe.evaluation.figures.style import light, settings


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Bars of each arm's median, a dot for each round; ours in blue, peers in grey."""
    metric, unit = result["metric"]
    rounds, theirs = result["rounds"], set(result.get("theirs", ()))
    arms = [name for name in rounds[0] if metric in rounds[0][name]]
    values = {arm: [middle(one[arm][metric]) for one in rounds if arm in one] for arm in arms}
    if unit.startswith("s ") and max(max(found) for found in values.values()) < 1:
        unit = f"m{unit}"
        values = {arm: [1000 * value for value in found] for arm, found in values.items()}
    with rc_context(settings()):
        # Inches: a band for the title and one for axis, legend and caption, and a bar each.
        figure = Figure(figsize=(8, 1.75 + 0.36 * len(arms)), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _bars(axes, values, theirs)
        axes.set_xlabel(unit)
        figure.suptitle(
            "\n".join(textwrap.wrap(result["title"], 80)),
            x=0.01, ha="left", fontsize=11.5, fontweight="bold", color=light("ink"),
        )  # fmt: skip
        figure.supxlabel(_caption(result), x=0.01, ha="left", fontsize=8.5, color=light("muted"))
        if 0 < len(theirs & set(arms)) < len(arms):
            both = [
                Patch(color=light("blue"), label="this project"),
                Patch(color=light("grey"), label="compared with"),
            ]
            figure.legend(handles=both, loc="outside lower right", ncols=2, handlelength=1)
        figure.savefig(path)


def _bars(axes: Axes, values: Mapping[str, list[float]], theirs: Set[str]) -> None:
    largest = max(max(found) for found in values.values())
    for place, (arm, found) in enumerate(values.items()):
        value = statistics.median(found)
        axes.barh(place, value, height=0.66, color=light("grey" if arm in theirs else "blue"))
        if len(found) > 1:
            axes.plot(found, [place] * len(found), ".", color=light("ink"), ms=5, clip_on=False)
        beyond = max(found) + 0.012 * largest
        axes.text(beyond, place, _number(value), va="center", fontsize=9.5)
    labels = ["\n".join(textwrap.wrap(arm, 44)) for arm in values]
    axes.set_yticks(range(len(values)), labels)
    for label, arm in zip(axes.get_yticklabels(), values, strict=True):
        label.set_color(light("muted" if arm in theirs else "ink"))
    axes.invert_yaxis()
    # Room for the number beside the longest bar.
    axes.set_xlim(0, 1.1 * largest)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.spines["left"].set_visible(False)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _caption(result: Mapping[str, Any]) -> str:
    on, count = result["machine"], len(result["rounds"])
    place = on.get("gpu") or f"{on['processor']}, {on['cores']} cores"
    shown = "one round" if count == 1 else f"bar: median of {count} rounds, dots: the rounds"
    return f"{place}, {result['settings']['dtype']}; {shown}"
