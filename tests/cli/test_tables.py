from __future__ import annotations

import io
from dataclasses import replace

from rich.table import Table

from dylora_moe.cli.console import console_on
from dylora_moe.cli.tables import matrix_table, plan_table, pool_table
from dylora_moe.lifecycle.results import Cost, Plan
from tests.cli.conftest import MATRICES
from tests.cli.fakes import KNOWN, revision


def drawn(table: Table) -> list[list[str]]:
    """The words of each line that has some."""
    stream = io.StringIO()
    console_on(stream).print(table)
    return [line.split() for line in stream.getvalue().splitlines() if line.strip()]


def test_the_matrix_has_a_row_an_arrival_and_a_gap_where_nothing_was_yet() -> None:
    lines = drawn(matrix_table(MATRICES))
    assert lines[0][0] == "Accuracy"
    assert lines[-2:] == [["orders", "100%"], ["robot", "98%", "90%"]]


def test_without_accuracies_at_the_end_the_matrix_is_of_losses() -> None:
    silent = replace(MATRICES, accuracy=((1.0, None), (None, None)))
    lines = drawn(matrix_table(silent))
    assert lines[0][0] == "Loss"
    assert lines[-1] == ["robot", "0.100", "0.200"]


def test_the_pool_s_table_names_experts_with_what_they_serve() -> None:
    lines = drawn(pool_table(revision(3, "orders", "robot")))
    assert lines[0] == ["Pool,", "revision", "3"]
    assert lines[-1] == ["robot", "1", "0.90", "mature", "8", "1,234", "robot", "40", "expert_2"]


def test_a_plan_says_what_waits_and_what_it_would_cost() -> None:
    costs = Cost(1200, 95.0, 5000, 20_000)
    plan = Plan("orders", 40, 999, KNOWN, 3.0, {"sales": 2.5}, costs, waiting=8)
    text = " ".join(word for line in drawn(plan_table([plan])) for word in line)
    for told in ("40 (+8)", "0.52 [0.41, 0.60]", "base 3.00, sales 2.50", "1200 tokens", "known"):
        assert told in text
    free = replace(plan, cost=Cost(0, 0.0, 0, 0))
    assert "none" in [word for line in drawn(plan_table([free])) for word in line]
