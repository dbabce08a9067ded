"""The tables on what arrived and what was kept of it: matrices, metrics, verdicts.

Knows how a history is tabulated; knows no markup.
"""

from __future__ import annotations

from collections.abc import Callable

from dylora_moe.evaluation.history import History
from dylora_moe.evaluation.matrix import Matrices, Values
from dylora_moe.evaluation.quantities import (
    MISSING,
    count,
    decimal,
    duration,
    interval,
    percent,
    points,
)
from dylora_moe.evaluation.steps import Step
from dylora_moe.evaluation.summary import Summary
from dylora_moe.evaluation.table import Column, Table


def accuracy_table(matrices: Matrices) -> Table:
    return _matrix_table(
        "accuracy_matrix",
        "Accuracy on each skill's validation rows after each step",
        matrices,
        matrices.accuracy,
        percent,
        "No accuracy was measured: no answers were generated after any step.",
    )


def loss_table(matrices: Matrices) -> Table:
    return _matrix_table(
        "loss_matrix",
        "Answer loss (nats per token) on each skill's validation rows after each step",
        matrices,
        matrices.loss,
        decimal,
        "No loss was measured after any step.",
    )


def _matrix_table(
    name: str,
    caption: str,
    matrices: Matrices,
    values: Values,
    word: Callable[[float | None], str],
    empty: str,
) -> Table:
    columns = (Column("#"), Column("After", "left"), *(Column(c) for c in matrices.columns))
    rows = tuple(
        (str(i + 1), matrices.rows[i], *(word(value) for value in row))
        for i, row in enumerate(values)
    )
    measured = any(value is not None for row in values for value in row)
    return Table(name, caption, columns, rows if measured else (), empty)


def metrics_table(found: Summary) -> Table:
    """The metrics of the matrices with what they mean."""
    rows = (
        (
            "Average accuracy",
            percent(found.average_accuracy),
            "mean over the skills after the last step",
        ),
        (
            "Backward transfer",
            points(found.backward_transfer),
            "mean change of a skill's accuracy since it was learned or revised",
        ),
        (
            "Forgetting",
            points(found.forgetting, signed=False),
            "mean fall from a skill's best accuracy since then; 0 is none",
        ),
        (
            "Worst change of an older skill",
            points(found.worst_change),
            f"against its best; {found.worst_skill or 'no older skill'}",
        ),
        (
            "Worst rise of an older skill's loss",
            percent(found.worst_rise),
            f"against its lowest; {found.worst_rise_skill or 'no older skill'}",
        ),
        ("Average loss", decimal(found.average_loss), "nats per answer token, after the last step"),
    )
    columns = (Column("Metric", "left"), Column("Value"), Column("Meaning", "left"))
    measured = tuple(row for row in rows if row[1] != MISSING)
    return Table(
        "metrics", "What the matrix comes to", columns, measured, "Nothing was measured yet."
    )


def arrivals_table(history: History) -> Table:
    """Each step: what came, what was found, what was done."""
    columns = (
        Column("#"),
        Column("Arrival", "left"),
        Column("Rows"),
        Column("Verdict", "left", "verdict"),
        Column("Separability (95%)"),
        Column("Fit"),
        Column("Nearest skill", "left"),
        Column("Done", "left"),
        Column("Expert", "left"),
        Column("Time"),
    )
    rows = tuple(
        (
            str(step.number),
            step.name,
            count(step.rows),
            step.verdict or MISSING,
            interval(step.separability),
            MISSING if step.fit is None else decimal(step.fit.value, 2),
            _nearest(history, step),
            step.action,
            _expert(history, step.expert, step.version),
            duration(step.seconds),
        )
        for step in history.steps
    )
    return Table(
        "arrivals",
        "Every arrival in order. Separability is the AUC of telling its inputs from the nearest "
        "skill's (0.5 the same, 1.0 told apart); fit is the nearest expert's loss on its answers "
        "(0 as good as on its own data, 1 no better than the base)",
        columns,
        rows,
        "Nothing has arrived yet.",
    )


def reasons_table(history: History) -> Table:
    """Why each verdict fell, in the words of the test that made it."""
    columns = (Column("#"), Column("Arrival", "left"), Column("Why", "left"))
    rows = tuple(
        (str(step.number), step.name, step.reason) for step in history.steps if step.reason
    )
    return Table("reasons", "Why each verdict fell", columns, rows, "No step gave a reason.")


def similarity_table(history: History) -> Table:
    """The number of every detector for each arrival."""
    detectors = tuple(dict.fromkeys(key for step in history.steps for key in step.similarity))
    columns = (Column("#"), Column("Arrival", "left"), *(Column(name) for name in detectors))
    rows = tuple(
        (
            str(step.number),
            step.name,
            *(decimal(step.similarity.get(detector)) for detector in detectors),
        )
        for step in history.steps
        if step.similarity
    )
    return Table(
        "similarity",
        "Similarity on arrival, by detector",
        columns,
        rows,
        "No detector has compared an arrival with a known skill yet.",
    )


def _nearest(history: History, step: Step) -> str:
    return history.skill_name(step.nearest[0][0]) if step.nearest else MISSING


def _expert(history: History, expert: str | None, version: int | None) -> str:
    if expert is None:
        return MISSING
    return history.alias(expert) if version is None else f"{history.alias(expert)} v{version}"
