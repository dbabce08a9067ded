"""Heat maps: the accuracy matrix, the loss matrix and the routing map."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from dylora_moe.evaluation.figures.canvas import Panel, ReportFigure, draw, shorten
from dylora_moe.evaluation.figures.style import light, ramp_colour, ramp_ink, shade
from dylora_moe.evaluation.history import History
from dylora_moe.evaluation.matrix import Matrices
from dylora_moe.evaluation.quantities import percent
from dylora_moe.evaluation.traffic import routing_columns, routing_shares
from dylora_moe.records import BASE_NAME

Cells = Sequence[Sequence[float | None]]


def accuracy_matrix(history: History, matrices: Matrices) -> ReportFigure:
    """Accuracy in percent after each step; loss in nats beside it."""
    panels = []
    if _measured(matrices.accuracy):
        panels.append(
            _heat_map(
                "accuracy-matrix",
                f"Accuracy matrix: average {percent(matrices.average_accuracy)} after the last of "
                f"{len(matrices.rows)} steps over {len(matrices.columns)} skills.",
                "Accuracy (%)",
                _step_labels(matrices),
                matrices.columns,
                matrices.accuracy,
                shades=matrices.accuracy,
                word=lambda value: f"{100 * value:.1f}",
                marked=_learned(matrices),
            )
        )
    if _measured(matrices.loss):
        panels.append(
            _heat_map(
                "loss-matrix",
                f"Loss matrix over {len(matrices.rows)} steps and {len(matrices.columns)} skills.",
                "Answer loss (nats per token)",
                _step_labels(matrices),
                matrices.columns,
                matrices.loss,
                shades=_loss_shades(matrices.loss),
                word=lambda value: f"{value:.2f}" if value < 100 else f"{value:.0f}",
                marked=_learned(matrices),
            )
        )
    caption = (
        "Each row is the pool after one step, each column one skill's validation rows. The framed "
        "cell is where a skill was first learned, or its answers were last revised: read downwards "
        "from it, and nothing should fade (accuracy) or darken (loss: darker is above the skill's "
        "lowest, fully dark at twice it)."
        if panels
        else "No skill has been scored yet, so there is no matrix."
    )
    measure = "Accuracy" if _measured(matrices.accuracy) or not panels else "Loss"
    title = f"{measure} after each arrival"
    return ReportFigure("accuracy_matrix", title, caption, tuple(panels))


def routing_map(history: History) -> ReportFigure:
    """Share of each skill's rows by expert."""
    shares = routing_shares(history)
    columns = routing_columns(history)
    title = "Routing map"
    if not shares:
        return ReportFigure("routing_map", title, "No routing was measured yet.", ())
    homes = {
        skill.name: history.alias(skill.expert_id) for skill in history.skills if skill.expert_id
    }
    own = {
        (i, columns.index(homes[name]))
        for i, (name, _) in enumerate(shares)
        if homes.get(name) in columns
    }
    to_own = [shares[i][1][j] for i, j in own]
    mean = sum(to_own) / len(to_own) if to_own else None
    panel = _heat_map(
        "routing-map",
        f"Routing map: on average {percent(mean)} of the weight goes to a skill's own expert.",
        "Weight of each expert (%)",
        [name for name, _ in shares],
        ["none" if column == BASE_NAME else column for column in columns],
        [row for _, row in shares],
        shades=[row for _, row in shares],
        word=lambda value: f"{100 * value:.1f}" if value else "0",
        marked=own,
    )
    caption = (
        "Each row is a skill's validation rows, each column the mean weight that the router gives "
        "an expert for them after the last step; none is the bare base. The framed cell is the "
        "skill's own expert."
    )
    return ReportFigure("routing_map", title, caption, (panel,))


def _heat_map(
    name: str,
    alt: str,
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Cells,
    *,
    shades: Cells,
    word: Callable[[float], str],
    marked: set[tuple[int, int]],
) -> Panel:
    def paint(axes: Axes) -> None:
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                depth = shades[i][j]
                step = None if value is None or depth is None else shade(depth)
                fill = light("band") if step is None else ramp_colour(step)
                axes.add_patch(Rectangle((j + 0.03, i + 0.04), 0.94, 0.92, color=fill, lw=0))
                if value is not None and step is not None:
                    axes.text(
                        j + 0.5, i + 0.52, word(value), ha="center", va="center",
                        size=9.5, color=ramp_ink(step),
                    )  # fmt: skip
        for i, j in sorted(marked):
            frame = Rectangle((j + 0.03, i + 0.04), 0.94, 0.92, fill=False, lw=1.8)
            frame.set_edgecolor(light("orange"))
            axes.add_patch(frame)
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(rows), 0)
        axes.set_xticks([j + 0.5 for j in range(len(columns))], [shorten(c) for c in columns])
        axes.set_yticks([i + 0.52 for i in range(len(rows))], [shorten(r, 20) for r in rows])
        axes.xaxis.tick_top()
        axes.tick_params(length=0, labelcolor=light("ink"))
        if slanted:
            for label in axes.get_xticklabels():
                label.set(rotation=38, ha="left", rotation_mode="anchor")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_title(title)

    longest = max((len(shorten(column)) for column in columns), default=0)
    label = max((len(shorten(row, 20)) for row in rows), default=0)
    slanted = longest > 7
    width = 6.2 * label + 44 * len(columns) + (4.4 * longest if slanted else 0) + 20
    height = 25 * len(rows) + (4.4 * longest if slanted else 12) + 40
    return draw(name, alt, paint, width=max(300.0, width), height=height)


def _step_labels(matrices: Matrices) -> list[str]:
    return [f"{i + 1}  {shorten(name, 17)}" for i, name in enumerate(matrices.rows)]


def _learned(matrices: Matrices) -> set[tuple[int, int]]:
    return {(row, j) for j, row in enumerate(matrices.learned_at)}


def _measured(values: Cells) -> bool:
    return any(value is not None for row in values for value in row)


def _loss_shades(loss: Cells) -> list[list[float | None]]:
    """0 at the lowest loss a skill ever had, 1 at twice it: skills of any scale compare."""
    n_skills = len(loss[0]) if loss else 0
    lowest = [
        min((row[j] or 0.0 for row in loss if row[j] is not None), default=0.0)
        for j in range(n_skills)
    ]
    return [
        [
            None if value is None else (value / lowest[j] - 1 if lowest[j] > 0 else 0.0)
            for j, value in enumerate(row)
        ]
        for row in loss
    ]
