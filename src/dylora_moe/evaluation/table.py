"""A table of finished cells: what Markdown, HTML and JSON print alike. Knows no markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Align = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `kind` is what its cells are: `verdict` cells are coloured by the page."""

    title: str
    align: Align = "right"
    kind: Literal["", "verdict"] = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of finished cells. `name` is its key in the JSON; `empty` is said without rows."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    empty: str = ""


def as_records(tables: Sequence[Table]) -> dict[str, list[dict[str, str]]]:
    """The tables as JSON: a list of rows by column title."""
    return {
        table.name: [
            {column.title: cell for column, cell in zip(table.columns, row, strict=True)}
            for row in table.rows
        ]
        for table in tables
    }
