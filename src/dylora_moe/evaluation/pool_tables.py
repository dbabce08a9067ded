"""The tables on the pool as it is now: skills, experts, routing map.

Knows how a history is tabulated; knows no markup.
"""

from __future__ import annotations

from dylora_moe.evaluation.history import History
from dylora_moe.evaluation.quantities import MISSING, count, decimal, percent, ratio, size
from dylora_moe.evaluation.table import Column, Table
from dylora_moe.evaluation.traffic import routing_columns, routing_shares, usage_after
from dylora_moe.records import BASE_NAME


def skills_table(history: History) -> Table:
    """Each skill after the last step: how well it is answered, and by whom."""
    columns = (
        Column("Skill", "left"),
        Column("Expert", "left"),
        Column("Rows"),
        Column("Accuracy"),
        Column("Loss"),
        Column("Loss, own expert"),
        Column("Ratio"),
        Column("To own expert"),
        Column("To none"),
    )
    rows = []
    for skill, row in zip(history.skills, history.latest, strict=False):
        if row is None:
            continue
        own = MISSING if skill.expert_id is None else history.alias(skill.expert_id)
        shares = {history.alias(name): share for name, share in row.to.items()}
        told = bool(shares)
        rows.append(
            (
                skill.name,
                own,
                count(row.rows),
                percent(row.accuracy),
                decimal(row.loss),
                decimal(row.pinned_loss),
                ratio(row.loss / row.pinned_loss if row.loss and row.pinned_loss else None),
                percent(shares.get(own, 0.0) if told else None),
                percent(shares.get(BASE_NAME, 0.0) if told else None),
            )
        )
    return Table(
        "skills",
        "Skills after the last step: the router's own choice against the skill's expert pinned",
        columns,
        tuple(rows),
        "The pool knows no skill yet.",
    )


def experts_table(history: History) -> Table:
    """The experts of the current revision."""
    columns = (
        Column("Expert", "left"),
        Column("Id", "left"),
        Column("Version"),
        Column("Skills", "left"),
        Column("Maturity"),
        Column("State", "left"),
        Column("Rank"),
        Column("Size"),
        Column("Traffic"),
    )
    traffic = usage_after(history, len(history.scores) - 1)
    rows = tuple(
        (
            expert.alias,
            expert.expert_id,
            str(expert.version),
            ", ".join(expert.skills) or MISSING,
            decimal(expert.maturity, 2),
            expert.state,
            MISSING if expert.rank is None else str(expert.rank),
            size(expert.n_bytes),
            percent(traffic.get(expert.alias, 0.0) if traffic else None),
        )
        for expert in history.experts
    )
    return Table(
        "experts", "Experts of the current revision", columns, rows, "The pool has no expert yet."
    )


def routing_table(history: History) -> Table:
    columns = (
        Column("Skill", "left"),
        *(Column("none" if name == BASE_NAME else name) for name in routing_columns(history)),
    )
    rows = tuple(
        (name, *(percent(share) for share in shares)) for name, shares in routing_shares(history)
    )
    return Table(
        "routing_map",
        "Mean weight of each expert on each skill's validation rows after the last step",
        columns,
        rows,
        "Routing was not measured yet.",
    )
