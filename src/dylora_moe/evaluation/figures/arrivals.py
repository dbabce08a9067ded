"""Similarity and verdict of each arrival, and how many experts there were after it."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from dylora_moe.evaluation.figures.canvas import Panel, ReportFigure, draw, legend_below, shorten
from dylora_moe.evaluation.figures.style import CYCLE, VERDICTS, light
from dylora_moe.evaluation.history import History
from dylora_moe.evaluation.steps import Step
from dylora_moe.records import Interval

CLASSIFIER = "classifier"
"""The detector whose number is the separability."""

THRESHOLD = 0.80
"""The classifier's, where an event of an older version tells none."""

BADLY = 0.5
"""Relative loss above which the nearest expert counts as doing badly."""


def arrival_verdicts(history: History) -> ReportFigure:
    """Separability, fit and the detectors' numbers of every arrival that was compared."""
    arrivals = [step for step in history.steps if step.verdict]
    title = "Similarity and verdict of each arrival"
    if not arrivals:
        return ReportFigure("arrival_verdicts", title, "Nothing has arrived yet.", ())
    panels = [_separability(arrivals)]
    if any(step.fit for step in arrivals):
        highest = max(step.fit.high for step in arrivals if step.fit)
        lowest = min(step.fit.low for step in arrivals if step.fit)
        panels.append(
            _axis_panel(
                "fit",
                "Fit of the nearest expert (relative loss)",
                arrivals,
                [step.fit for step in arrivals],
                [BADLY] * len(arrivals),
                (min(-0.05, lowest - 0.05), max(1.05, highest + 0.05)),
                "not measured",
            )
        )
    detectors = _other_detectors(arrivals)
    if detectors:
        panels.append(_detectors(arrivals, detectors))
    caption = (
        "Left of the dashed line an arrival's inputs cannot be told from the nearest skill's, and "
        "its answers come well from the nearest expert. Bars are 95% intervals; a bar across the "
        "line means wait for more. Both to the right: novel. Only the first: covered. Only the "
        "second: revised. Neither: known."
    )
    return ReportFigure("arrival_verdicts", title, caption, tuple(panels))


def _separability(arrivals: Sequence[Step]) -> Panel:
    measured = [step.separability for step in arrivals]
    ends = [end for found in measured if found for end in (found.low, found.high)]
    by_classifier = {step.detector for step in arrivals if step.separability} <= {CLASSIFIER, ""}
    return _axis_panel(
        "separability",
        f"Separability from the nearest skill{' (AUC)' if by_classifier else ''}",
        arrivals,
        measured,
        [_threshold(step) for step in arrivals],
        # An AUC is hardly below 0.4; others, as 1 - cosine, have a scale of their own.
        (min([0.4, *(end - 0.05 for end in ends)]), max([1.02, *ends])),
        "empty pool",
    )


def _threshold(step: Step) -> float | None:
    if step.threshold is None and step.detector in (CLASSIFIER, ""):
        return THRESHOLD
    return step.threshold


def _axis_panel(
    name: str,
    title: str,
    arrivals: Sequence[Step],
    values: Sequence[Interval | None],
    thresholds: Sequence[float | None],
    limits: tuple[float, float],
    absent: str,
) -> Panel:
    def paint(axes: Axes) -> None:
        _dashed(axes, thresholds)
        for i, (step, value) in enumerate(zip(arrivals, values, strict=True)):
            marker, role = VERDICTS.get(step.verdict or "", ("o", "grey"))
            if value is None:
                axes.text(
                    limits[0] + 0.02 * (limits[1] - limits[0]), i, absent, va="center",
                    size=9, style="italic", color=light("muted"),
                )  # fmt: skip
                continue
            axes.plot([value.low, value.high], [i, i], color=light(role), lw=3.4, alpha=0.45)
            axes.plot(
                value.value, i, marker, color=light(role), ms=8,
                mec=light("surface"), mew=1.0, clip_on=False,
            )  # fmt: skip
        _rows_of(axes, arrivals)
        axes.set_xlim(*limits)
        axes.set_title(title, pad=20)
        _verdict_legend(axes, arrivals)

    described = "; ".join(
        f"{step.name} {step.verdict}" + ("" if value is None else f" {value.value:.2f}")
        for step, value in zip(arrivals, values, strict=True)
    )
    return draw(name, f"{title}: {described}.", paint, height=_height(arrivals) + 24)


def _dashed(axes: Axes, thresholds: Sequence[float | None]) -> None:
    """Each arrival's threshold beside it; one line where it is the same for all."""
    for threshold in sorted({found for found in thresholds if found is not None}):
        rows = [i for i, found in enumerate(thresholds) if found == threshold]
        if len(rows) == len(thresholds):
            axes.axvline(threshold, color=light("muted"), lw=1.2, ls=(0, (4, 3)))
        else:
            low = [i - 0.5 for i in rows]
            high = [i + 0.5 for i in rows]
            at = [threshold] * len(rows)
            axes.vlines(at, low, high, colors=light("muted"), lw=1.2, ls=(0, (4, 3)))
        axes.annotate(
            f"{threshold:.2f}", (threshold, 1), xycoords=("data", "axes fraction"),
            xytext=(0, 3), textcoords="offset points", ha="center", va="bottom",
            size=9, color=light("muted"), annotation_clip=False,
        )  # fmt: skip


def _other_detectors(arrivals: Sequence[Step]) -> list[str]:
    """Detectors whose number is not the separability, which has a panel of its own."""
    names = dict.fromkeys(key for step in arrivals for key in step.similarity)
    return [name for name in names if name != CLASSIFIER]


def _detectors(arrivals: Sequence[Step], names: Sequence[str]) -> Panel:
    def paint(axes: Axes) -> None:
        for k, name in enumerate(names):
            found = [
                (step.similarity[name], i)
                for i, step in enumerate(arrivals)
                if name in step.similarity
            ]
            axes.plot(
                [value for value, _ in found], [i for _, i in found], "oDs^Pv"[k % 6], ms=7,
                color=light(CYCLE[k % len(CYCLE)]), mec=light("surface"), mew=1.0,
                label=shorten(name, 22), ls="none", clip_on=False,
            )  # fmt: skip
        _rows_of(axes, arrivals)
        axes.set_title("Number of each detector", pad=20)
        legend_below(axes, 2)

    return draw(
        "detectors",
        f"Number of each detector ({', '.join(names)}) for {len(arrivals)} arrivals.",
        paint,
        height=_height(arrivals) + 24,
    )


def _rows_of(axes: Axes, arrivals: Sequence[Step]) -> None:
    axes.set_ylim(len(arrivals) - 0.4, -0.6)
    axes.set_yticks(
        range(len(arrivals)), [f"{step.number}  {shorten(step.name)}" for step in arrivals]
    )
    axes.tick_params(axis="y", labelcolor=light("ink"))
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    axes.spines["left"].set_visible(False)


def _verdict_legend(axes: Axes, arrivals: Sequence[Step]) -> None:
    fell = [name for name in VERDICTS if any(step.verdict == name for step in arrivals)]
    legend_below(axes, len(fell), [
        Line2D(
            [], [], marker=VERDICTS[name][0], color=light(VERDICTS[name][1]), ls="none", ms=7,
            label=name,
        )
        for name in fell
    ])  # fmt: skip


def _height(arrivals: Sequence[Step]) -> float:
    return 70 + 24 * len(arrivals)
