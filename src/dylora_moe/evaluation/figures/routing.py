"""How the router spreads the work: usage, growth, entropy, balance."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from dylora_moe.build.run_logs import keys_with
from dylora_moe.evaluation.figures.canvas import Panel, ReportFigure, draw, legend_below, shorten
from dylora_moe.evaluation.figures.identity import expert_line, expert_places
from dylora_moe.evaluation.figures.style import expert_colour, expert_hatch, light
from dylora_moe.evaluation.figures.timelines import Line, timeline_panel
from dylora_moe.evaluation.history import History
from dylora_moe.evaluation.traffic import usage_after
from dylora_moe.records import BASE_NAME

USAGE_PREFIX = "expert_usage/"


def expert_usage(history: History) -> ReportFigure:
    """Who gets the validation rows after each step, and the traffic while training."""
    panels = []
    if any(usage_after(history, i) for i in range(len(history.steps))):
        panels.append(_growth(history))
    lines = [
        expert_line(history, key, key.removeprefix(USAGE_PREFIX))
        for key in keys_with(history.runs, USAGE_PREFIX)
    ]
    traffic = timeline_panel(
        "usage-in-training", "Traffic while training (%)", history.runs, lines,
        word=lambda value: f"{100 * value:.0f}",
    )  # fmt: skip
    if traffic is not None:
        panels.append(traffic)
    caption = (
        "Each expert's share of the routing weight over all validation rows after each step, with "
        "the number of experts at the right; and its share of the batches while training."
        if panels
        else "No expert has had traffic yet."
    )
    return ReportFigure("expert_usage", "Expert usage and growth", caption, tuple(panels))


def routing_entropy(history: History) -> ReportFigure:
    return _single(
        history, "routing_entropy", "How sure the router is", "Routing entropy (nats)",
        "Entropy of the router's probabilities while training: high while an expert is young and "
        "mixed with its neighbours, low once the router is sure.",
        "violet",
    )  # fmt: skip


def balance_loss(history: History) -> ReportFigure:
    return _single(
        history, "balance_loss", "Load balance", "Load-balancing loss",
        "The load-balancing loss while training: lowest when batches spread evenly over experts.",
        "green",
    )  # fmt: skip


def _single(
    history: History, key: str, title: str, axis: str, caption: str, role: str
) -> ReportFigure:
    panel = timeline_panel(key.replace("_", "-"), axis, history.runs, [Line(key, "", light(role))])
    if panel is None:
        return ReportFigure(key, title, f"No run has logged `{key}` yet.", ())
    return ReportFigure(key, title, caption, (panel,))


def _growth(history: History) -> Panel:
    places = expert_places(history)

    def paint(axes: Axes) -> None:
        for i in range(len(history.steps)):
            usage, left = usage_after(history, i), 0.0
            for name, place in places.items():
                share = usage.get(name, 0.0)
                if share <= 0:
                    continue
                none = name == BASE_NAME
                axes.barh(
                    i, share, left=left, height=0.68, lw=0.8, edgecolor=light("surface"),
                    color=light("grey") if none else expert_colour(place),
                    hatch="" if none else expert_hatch(place),
                )  # fmt: skip
                left += share
            axes.text(
                1.02, i, str(history.experts_after[i]), va="center", size=9.5,
                color=light("muted"),
            )  # fmt: skip
        axes.set_ylim(len(history.steps) - 0.4, -0.6)
        axes.set_yticks(
            range(len(history.steps)),
            [f"{step.number}  {shorten(step.name)}" for step in history.steps],
        )
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
        axes.tick_params(axis="y", labelcolor=light("ink"))
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("share of the routing weight (%)")
        axes.set_title("Who answers after each step")
        axes.text(
            1.02, 1.0, "experts", transform=axes.transAxes, va="bottom", ha="center", size=9,
            color=light("muted"),
        )  # fmt: skip
        legend_below(axes, 3, _swatches(places))

    lines = (len(places) + 2) // 3
    return draw(
        "usage-after-steps",
        f"Share of the routing weight by expert after each of {len(history.steps)} steps, from "
        f"{history.experts_after[0]} to {history.experts_after[-1]} experts.",
        paint,
        height=92 + 23 * len(history.steps) + 16 * lines,
    )


def _swatches(places: dict[str, int]) -> list[Patch]:
    return [
        Patch(
            facecolor=light("grey") if name == BASE_NAME else expert_colour(place),
            hatch="" if name == BASE_NAME else expert_hatch(place),
            edgecolor=light("surface"), lw=0.8,
            label="none (base)" if name == BASE_NAME else shorten(name),
        )
        for name, place in places.items()
    ]  # fmt: skip
