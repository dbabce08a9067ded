"""What it cost: speed, FLOPs, memory, trainable share and bytes per expert."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes

from dylora_moe.evaluation.figures.canvas import Panel, ReportFigure, draw, shorten
from dylora_moe.evaluation.figures.style import light
from dylora_moe.evaluation.figures.timelines import Line, timeline_panel
from dylora_moe.evaluation.history import History
from dylora_moe.evaluation.measurements import Training
from dylora_moe.evaluation.quantities import count, flops, percent, size

Bars = Sequence[tuple[str, float]]


def tokens_per_second(history: History) -> ReportFigure:
    panel = timeline_panel(
        "tokens-per-second", "Tokens per second", history.runs,
        [Line("tokens_per_second", "", light("blue"))], word=count,
    )  # fmt: skip
    return _figure(
        "tokens_per_second", "Throughput", panel,
        "Tokens trained on in a second.",
        "No run has logged its speed yet.",
    )  # fmt: skip


def training_flops(history: History) -> ReportFigure:
    return _bars(
        "flops", "FLOPs of each training", "Floating-point operations",
        _by_run(history, "total_flos", lambda item: item.flops), flops,

        "Floating-point operations of each run, as the trainer counts them.",
        "No run has counted its floating-point operations yet.",
        "red",
    )  # fmt: skip


def peak_memory(history: History) -> ReportFigure:
    return _bars(
        "peak_memory", "Peak memory", "Most memory held",
        _by_run(history, "peak_memory_bytes", lambda item: item.peak_memory_bytes), size,
        "The most memory that the process held during each run.",
        "No run has logged its memory yet.",
        "violet",
    )  # fmt: skip


def trainable_share(history: History) -> ReportFigure:
    bars = [
        (_expert_label(history, item.expert, item.version), item.trainable_share)
        for item in history.trainings
        if item.trainable_share is not None
    ]
    return _bars(
        "trainable_share", "Trainable share", "Share of the parameters trained", bars,
        lambda value: percent(value, 2),
        "Parameters that a training changes, as a share of all parameters of the model.",
        "No training has told its trainable share yet.",
        "green",
    )  # fmt: skip


def expert_bytes(history: History) -> ReportFigure:
    bars = [
        (expert.alias, float(expert.n_bytes))
        for expert in history.experts
        if expert.n_bytes is not None
    ]
    return _bars(
        "expert_bytes", "Bytes per expert", "Size of the weights", bars, size,
        "Size of the weights of each expert's current version.",
        "No expert's size is known yet.",
        "orange",
    )  # fmt: skip


def _by_run(
    history: History, key: str, tell: Callable[[Training], float | None]
) -> list[tuple[str, float]]:
    """The highest logged value of each run, else what its training event tells."""
    told = {
        history.steps[item.step - 1].run_id: tell(item) for item in history.trainings if item.step
    }
    found = []
    for run in history.runs:
        logged = run.highest(key)
        value = told.get(run.run_id) if logged is None else logged
        if value is not None:
            found.append((run.label, value))
    return found


def _expert_label(history: History, expert: str, version: int | None) -> str:
    return history.alias(expert) + ("" if version is None else f" v{version}")


def _bars(
    name: str,
    title: str,
    axis: str,
    bars: Bars,
    word: Callable[[float], str],
    caption: str,
    sentence: str,
    role: str,
) -> ReportFigure:
    if not bars:
        return ReportFigure(name, title, sentence, ())

    def paint(axes: Axes) -> None:
        axes.barh(range(len(bars)), [value for _, value in bars], height=0.62, color=light(role))
        highest = max(value for _, value in bars) or 1.0
        for i, (_, value) in enumerate(bars):
            axes.text(
                value + 0.015 * highest, i, word(value), va="center", size=9.5,
                color=light("muted"),
            )  # fmt: skip
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_yticks(range(len(bars)), [shorten(label, 20) for label, _ in bars])
        axes.set_xlim(0, highest * 1.25)
        axes.tick_params(axis="y", labelcolor=light("ink"))
        # The numbers stand at the bars; an axis would say them again.
        axes.set_xticks([])
        axes.grid(False)
        axes.spines[["bottom", "left"]].set_visible(False)
        axes.set_title(axis)

    told = "; ".join(f"{label} {word(value)}" for label, value in bars)
    panel = draw(name.replace("_", "-"), f"{axis}: {told}.", paint, height=52 + 25 * len(bars))
    return ReportFigure(name, title, caption, (panel,))


def _figure(
    name: str, title: str, panel: Panel | None, caption: str, sentence: str
) -> ReportFigure:
    if panel is None:
        return ReportFigure(name, title, sentence, ())
    return ReportFigure(name, title, caption, (panel,))
