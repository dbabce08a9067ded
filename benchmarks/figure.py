"""The figure of a benchmark: every arm's median with its rounds, in the colours of the reports."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dylora_moe.evaluation.figures.style import light


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Bars of each arm's median, a dot for each round; ours in blue, peers in grey."""
    metric, unit = result["metric"]
    arms = [name for name in result["rounds"][0] if metric in result["rounds"][0][name]]
    values = {
        arm: [_middle(one[arm][metric]) for one in result["rounds"] if arm in one] for arm in arms
    }
    figure = Figure(figsize=(7.2, 1.3 + 0.42 * len(arms)), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    largest = max(max(found) for found in values.values())
    for place, arm in enumerate(arms):
        middle = statistics.median(values[arm])
        peer = arm.lower().startswith(("peft", "trl", "x-lora"))
        colour = light("grey") if peer else light("blue")
        axes.barh(place, middle, height=0.62, color=colour)
        axes.plot(
            values[arm], [place] * len(values[arm]), ".", color=light("ink"), ms=4, clip_on=False
        )
        label = f"{middle:.3g}"
        axes.text(max(values[arm]) + 0.02 * largest, place, label, va="center", fontsize=9)
    axes.set_yticks(range(len(arms)), arms, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * largest)
    axes.set_xlabel(unit, fontsize=9, color=light("muted"))
    axes.tick_params(axis="x", labelsize=8, colors=light("muted"))
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(light("line"))
    axes.set_title(result["title"], fontsize=10, loc="left", color=light("ink"))
    gpu = result["machine"].get("gpu")
    place = gpu or f"{result['machine']['processor']}, {result['machine']['cores']} cores"
    figure.supxlabel(
        f"{place}; bar: median of {len(result['rounds'])} rounds, dots: rounds",
        fontsize=7.5,
        color=light("muted"),
    )
    figure.savefig(path)


def _middle(value: Any) -> float:
    return float(statistics.median(value)) if isinstance(value, list) else float(value)
