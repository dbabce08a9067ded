"""The tables on how the pool was trained and routed: trainings, router fits, gates, notices.

Knows how a history is tabulated; knows no markup.
"""

from __future__ import annotations

from dylora_moe.evaluation.history import History
from dylora_moe.evaluation.quantities import (
    MISSING,
    count,
    decimal,
    duration,
    flops,
    percent,
    size,
)
from dylora_moe.evaluation.table import Column, Table


def trainings_table(history: History) -> Table:
    """What each training did and cost."""
    columns = (
        Column("Arrival", "left"),
        Column("Expert", "left"),
        Column("Phases", "left"),
        Column("Steps"),
        Column("Tokens"),
        Column("Time"),
        Column("Tokens/s"),
        Column("FLOPs"),
        Column("Peak memory"),
        Column("Padding"),
        Column("Trainable"),
        Column("Best loss"),
    )
    rows = tuple(
        (
            history.step_name(item.step) or MISSING,
            history.alias(item.expert) + ("" if item.version is None else f" v{item.version}"),
            ", ".join(item.phases) or MISSING,
            count(item.steps),
            count(item.tokens),
            duration(item.seconds),
            count(item.tokens_per_second),
            flops(item.flops),
            size(item.peak_memory_bytes),
            percent(item.padding_fraction),
            percent(item.trainable_share, 2),
            decimal(item.best_loss),
        )
        for item in history.trainings
    )
    return Table("trainings", "Trainings", columns, rows, "No expert has been trained yet.")


def router_table(history: History) -> Table:
    """Each fit of the router."""
    columns = (
        Column("Arrival", "left"),
        Column("Classes"),
        Column("Threshold for none"),
        Column("Own rows to none"),
        Column("Foreign rows to none"),
        Column("Accuracy"),
        Column("Temperature"),
        Column("Fit time"),
    )
    rows = tuple(
        (
            history.step_name(fit.step) or MISSING,
            count(fit.classes),
            decimal(fit.none_threshold),
            percent(fit.own_to_none),
            percent(fit.foreign_to_none),
            percent(fit.accuracy),
            decimal(fit.temperature, 2),
            duration(fit.fit_seconds),
        )
        for fit in history.router_fits
    )
    return Table("router", "Router fits", columns, rows, "The router was not fitted yet.")


def gates_table(history: History) -> Table:
    """Each promotion gate: what the older skills' losses did."""
    columns = (
        Column("Arrival", "left"),
        Column("Promoted", "left"),
        Column("Worst rise of a loss"),
        Column("Skill", "left"),
        Column("Tolerance"),
        Column("Rows scored again"),
    )
    rows = []
    for step in history.steps:
        if step.gate is None:
            continue
        worst = step.gate.worst
        rows.append(
            (
                step.name,
                "yes" if step.gate.promoted else "no",
                percent(None if worst is None else worst[1], 2),
                MISSING if worst is None else history.skill_name(worst[0]),
                percent(step.gate.tolerance),
                count(step.gate.rows_rescored),
            )
        )
    return Table(
        "gates",
        "Promotion gates: relative rise of the older skills' losses",
        columns,
        tuple(rows),
        "No promotion was put to the gate yet.",
    )


def strategies_table(history: History) -> Table:
    """Changes of the share of inputs that are routed densely."""
    columns = (Column("Arrival", "left"), Column("Dense before"), Column("Dense after"))
    rows = tuple(
        (
            history.step_name(change.step) or MISSING,
            percent(change.dense_before),
            percent(change.dense_after),
        )
        for change in history.strategies
    )
    return Table(
        "strategies",
        "Routing strategy: share of inputs routed densely",
        columns,
        rows,
        "The routing strategy has not changed.",
    )


def notices_table(history: History) -> Table:
    """Warnings and errors, and log lines that could not be read."""
    columns = (Column("Arrival", "left"), Column("Kind", "left"), Column("What", "left"))
    rows = [
        (history.step_name(notice.step) or MISSING, notice.kind, notice.text)
        for notice in history.notices
    ]
    rows.extend(
        (run.name, "log", f"{run.damaged} unreadable lines in runs/{run.run_id}/metrics.jsonl")
        for run in history.runs
        if run.damaged
    )
    return Table("notices", "Warnings and errors", columns, tuple(rows), "No warning, no error.")
