"""Who gets the validation rows: shares by expert, out of the scores of a history."""

from __future__ import annotations

from dylora_moe.evaluation.history import History
from dylora_moe.records import BASE_NAME


def usage_after(history: History, index: int) -> dict[str, float]:
    """Share of the routing weight over all validation rows, by alias (and `base`), after a step."""
    totals: dict[str, float] = {}
    weight = 0.0
    for row in history.scores[index] if 0 <= index < len(history.scores) else ():
        if row is None or not row.to:
            continue
        rows = float(row.rows or 1)
        weight += rows
        for name, share in row.to.items():
            alias = history.alias(name)
            totals[alias] = totals.get(alias, 0.0) + rows * share
    return {alias: total / weight for alias, total in totals.items()} if weight else {}


def routing_columns(history: History) -> tuple[str, ...]:
    """Whom rows may go to after the last step: aliases in the pool's order, `base` last."""
    sent = {history.alias(name) for row in history.latest if row is not None for name in row.to}
    known = [expert.alias for expert in history.experts]
    others = sorted(sent - set(known) - {BASE_NAME})
    return (*known, *others, BASE_NAME)


def routing_shares(history: History) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """The routing map: for each skill the mean weight by column of `routing_columns`."""
    columns = routing_columns(history)
    found = []
    for skill, row in zip(history.skills, history.latest, strict=False):
        if row is None or not row.to:
            continue
        shares: dict[str, float] = {}
        for name, share in row.to.items():
            shares[history.alias(name)] = shares.get(history.alias(name), 0.0) + share
        found.append((skill.name, tuple(shares.get(column, 0.0) for column in columns)))
    return tuple(found)
