"""How training went: losses by phase, gradient norms, padding, packing."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from dylora_moe.build.run_logs import Run, keys_with, summed
from dylora_moe.evaluation.figures.canvas import Panel, ReportFigure, draw, legend_below, shorten
from dylora_moe.evaluation.figures.identity import expert_line
from dylora_moe.evaluation.figures.style import CYCLE, light
from dylora_moe.evaluation.figures.timelines import Line, timeline_panel
from dylora_moe.evaluation.history import History
from dylora_moe.evaluation.quantities import plural

MAX_RUNS = 24
"""More panels of losses than this say less, not more."""

PADDING_BOUND = 0.10
"""Padding is meant to stay below this fraction of the tokens."""


def loss_curves(history: History) -> ReportFigure:
    """Training loss and the evaluation sets' losses of each run, its phases shaded."""
    runs = [(i, run) for i, run in enumerate(history.runs, 1) if _losses(run)]
    title = "Loss curves by phase"
    if not runs:
        return ReportFigure("loss_curves", title, "No run has logged a loss yet.", ())
    caption = (
        "Training loss (thin) and the loss of each evaluation set (with dots), in nats per answer "
        "token; the shading marks the phases."
    )
    if len(runs) > MAX_RUNS:
        caption += f" The last {MAX_RUNS} of {len(runs)} runs."
    panels = tuple(_loss_panel(number, run) for number, run in runs[-MAX_RUNS:])
    return ReportFigure("loss_curves", title, caption, panels)


def gradient_norms(history: History) -> ReportFigure:
    lines = [
        Line(key, "router", light("grey"), "--")
        if key == "grad_norm/router"
        else expert_line(history, key, key.removeprefix("grad_norm/"))
        for key in keys_with(history.runs, "grad_norm/")
    ]
    panel = timeline_panel(
        "gradient-norms", "Norm before clipping", history.runs, lines, log_scale=True
    )
    if panel is None:
        return ReportFigure(
            "gradient_norms", "Gradient norms", "No run has logged a gradient norm yet.", ()
        )
    return ReportFigure(
        "gradient_norms", "Gradient norms",
        "Norm of the gradient of the router (dashed) and of each expert, on a logarithmic scale.",
        (panel,),
    )  # fmt: skip


def padding_fraction(history: History) -> ReportFigure:
    panel = timeline_panel(
        "padding-fraction", "Padding (% of tokens)", history.runs,
        [Line("padding_fraction", "", light("orange"))],
        word=lambda value: f"{100 * value:.0f}", ceiling=PADDING_BOUND,
    )  # fmt: skip
    if panel is None:
        return ReportFigure("padding_fraction", "Padding", "No run has logged its padding yet.", ())
    return ReportFigure(
        "padding_fraction", "Padding",
        "Tokens of the batches that are padding; the dashed line is the bound of 10%.", (panel,),
    )  # fmt: skip


def packed_lengths(history: History) -> ReportFigure:
    """The histograms of all runs added up."""
    found = [run.histogram for run in history.runs if run.histogram is not None]
    histogram, title = summed(found), "Packed sequence lengths"
    if histogram is None:
        return ReportFigure("packed_lengths", title, "No run has logged packed lengths yet.", ())

    def paint(axes: Axes) -> None:
        starts = histogram.edges[:-1]
        widths = [b - a for a, b in zip(histogram.edges, histogram.edges[1:], strict=False)]
        axes.bar(
            starts, histogram.counts, widths, align="edge", color=light("blue"),
            edgecolor=light("surface"), lw=1.0,
        )  # fmt: skip
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_title("Sequences by packed length")
        axes.set_xlabel("tokens in the sequence")

    total = sum(histogram.counts)
    panel = draw("packed-lengths", f"Histogram of the lengths of {total:,.0f} sequences.", paint)
    caption = (
        "Lengths of the sequences that were trained on, in tokens, over the plans of "
        f"{plural(len(found), 'run')}."
    )
    return ReportFigure("packed_lengths", title, caption, (panel,))


def _losses(run: Run) -> list[str]:
    sets = [key for key in run.curves if key.startswith("eval_") and key.endswith("_loss")]
    return [*(["loss"] if "loss" in run.curves else []), *sets]


def _loss_panel(number: int, run: Run) -> Panel:
    keys = _losses(run)

    def paint(axes: Axes) -> None:
        for k, span in enumerate(run.phases):
            if k % 2:
                axes.axvspan(span.start, span.end, color=light("band"), lw=0, zorder=0)
            axes.annotate(
                span.name, (span.start, 1), xycoords=("data", "axes fraction"), xytext=(3, -3),
                textcoords="offset points", va="top", size=8.5, color=light("muted"),
            )  # fmt: skip
        for k, key in enumerate(keys):
            points = run.curves[key]
            trained = key == "loss"
            axes.plot(
                [point.position for point in points], [point.value for point in points],
                color=light("grey") if trained else light(CYCLE[(k - 1) % len(CYCLE)]),
                lw=1.2 if trained else 1.8, marker="" if trained else "o", ms=4,
                label="training" if trained else shorten(_set_name(key), 22),
            )  # fmt: skip
        axes.set_xlim(0, run.length or 1)
        top = axes.get_ylim()[1]
        axes.set_ylim(0, top * 1.08)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_title(shorten(run.label, 32))
        axes.set_xlabel("training step")
        axes.set_ylabel("loss (nats)")
        legend_below(axes)

    told = "; ".join(
        f"{'training' if key == 'loss' else _set_name(key)} from {run.curves[key][0].value:.2f} "
        f"to {run.curves[key][-1].value:.2f}"
        for key in keys
    )
    return draw(
        f"loss-{number}", f"Losses of the run for {run.name}: {told}.", paint,
        height=225 + 16 * ((len(keys) + 2) // 3),
    )  # fmt: skip


def _set_name(key: str) -> str:
    return key.removeprefix("eval_").removesuffix("_loss")
