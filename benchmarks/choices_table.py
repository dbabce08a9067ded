"""Choices about routing and novelty, compared with the default; as rows and as tables.

Plain numbers; fits nothing and imports no model library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from measured import Row

Found = Mapping[str, Mapping[str, Any]]
"""Figures by the name of a choice; the first is the default."""


def router_rows(found: Found) -> list[Row]:
    """The scoreboard's rows: what each choice does to the cross-entropy of the weights, the one
    figure that every choice can move."""
    rows = []
    for name, one in found.items():
        if "over" in one:
            value, low, high = one["over"]["weight_entropy"]
            measure = f"cross-entropy of the routing weights, {_full(name, one)}, less as it is"
            rows.append(Row(measure, value, low=low, high=high, interval=True))
    return rows


def novelty_rows(found: Found) -> list[Row]:
    """The scoreboard's rows: wrong verdicts of each choice, less the default's."""
    rows = []
    for name, one in found.items():
        if "over" in one:
            value, low, high = one["over"]
            measure = f"share of wrong verdicts, {name}, less as it is"
            rows.append(Row(measure, value, low=low, high=high, interval=True))
    return rows


def router_table(found: Found) -> str:
    """Markdown: a table for each group, with the default's line in it."""
    titles = (
        "choice", "accuracy, distinct", "near", "cross-entropy", "less as it is",
        "calibration error", "weight of the right expert", "cross-entropy of the weights",
        "less as it is", "experts a row", "own to none", *_foreign(found),
        "multiply-adds", "fit, s",
    )  # fmt: skip
    return _grouped(found, titles, _router_cells)


def novelty_table(found: Found) -> str:
    """Markdown: a table for each group, with the default's line in it."""
    titles = (
        "choice", "wrong", "less as it is", "unsure", "new ones missed", "known ones called new",
        "wrong: hard", "blurred", "returning", "AUROC of the measure", "ms a verdict",
    )  # fmt: skip
    return _grouped(found, titles, _novelty_cells)


def _grouped(
    found: Found, titles: Sequence[str], cells: Callable[[str, Mapping[str, Any]], list[str]]
) -> str:
    usual = next(iter(found))
    parts = []
    for group in dict.fromkeys(one["group"] for one in list(found.values())[1:]):
        lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
        here = [name for name, one in found.items() if one["group"] == group]
        lines += ["| " + " | ".join(cells(name, found[name])) + " |" for name in [usual, *here]]
        parts.append(f"### Choices: {group}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _router_cells(name: str, one: Mapping[str, Any]) -> list[str]:
    over = one.get("over", {})
    return [
        name + (f" (step {one['kept']:.0f})" if one["group"] == "gate" else ""),
        f"{one['accuracy']['distinct']:.2%}", f"{one['accuracy']['near']:.2%}",
        f"{one['cross_entropy']:.4f}", _apart(over.get("cross_entropy")),
        f"{one['calibration_error']:.4f}", f"{one['weight']:.4f}",
        f"{one['weight_entropy']:.4f}", _apart(over.get("weight_entropy")),
        f"{one['experts']:.2f}", f"{one['to_none']:.2%}",
        *(f"{share:.1%}" for share in one["foreign_to_none"].values()),
        f"{one['multiply_adds']:,.0f}", f"{one['seconds']:.1f}",
    ]  # fmt: skip


def _novelty_cells(name: str, one: Mapping[str, Any]) -> list[str]:
    by_stream = [f"{one['streams'][kind]:.1%}" for kind in ("hard", "blurred", "returning")]
    return [
        name, f"{one['wrong']:.1%}", _apart(one.get("over")), f"{one['unsure']:.1%}",
        f"{one['missed']} of {one['new']}", f"{one['again']} of {one['known']}",
        *by_stream, f"{one['auroc']:.4f}", f"{1000 * one['seconds']:.0f}",
    ]  # fmt: skip


def _apart(found: Sequence[float] | None) -> str:
    if found is None:
        return "-"
    value, low, high = found
    return f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"


def _full(name: str, one: Mapping[str, Any]) -> str:
    return f"{one['group']}: {name}"


def _foreign(found: Found) -> list[str]:
    names = next(iter(found.values()))["foreign_to_none"]
    return [f"{name} to none" for name in names]
