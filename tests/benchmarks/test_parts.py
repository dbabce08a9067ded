"""The small measurements run at toy size, and their tables hold numbers under whole titles."""

from __future__ import annotations

import math

import parts
import pytest
from harness import Options
from rich.table import Table


@pytest.mark.parametrize("name", parts.PARTS)
def test_a_part_runs_at_toy_size(name: str) -> None:
    table = parts.PARTS[name](Options(toy=True))
    assert table.row_count > 0
    for column in table.columns:
        cells = list(column.cells)
        assert len(cells) == table.row_count
        assert column.header
    # What stands before the last columns are names and sizes.
    values = [float(str(cell)) for cell in table.columns[-1].cells]
    assert all(math.isfinite(value) and value >= 0 for value in values)


def test_a_title_wider_than_its_table_stands_on_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    title = " ".join(["a title that is longer than any console is wide"] * 5)
    table = Table(title=title)
    table.add_column("ms")
    table.add_row("[1]")
    parts.say(table)
    said = capsys.readouterr().out
    assert title in said
    assert said.count("a title") == 5
