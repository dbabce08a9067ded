"""Every row of every result, what falls short first; and the page of the documentation.

python benchmarks/scoreboard.py                             # what `make scoreboard` prints
python benchmarks/scoreboard.py --write docs/benchmarks.md  # its generated part, anew
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from page import rewritten
from rich.table import Table
from verdicts import RESULTS, Result, Verdict, entries, goal, number, read_results, spread, tally

from dylora_moe.cli.console import console_on

_COLOURS = {
    Verdict.SHORT_OF_MUST: "bold red",
    Verdict.SHORT_OF_AIM: "yellow",
    Verdict.NOT_MEASURED: "dim",
    Verdict.REACHED: "green",
    Verdict.REPORTED: "dim",
}


def show(results: Sequence[Result]) -> None:
    """Prints all rows as a table, and the command behind each file."""
    console = console_on(sys.stdout)
    found = entries(results)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("verdict", "measure", "value", "rounds", "must", "aim", "result"):
        right = title in ("value", "must", "aim")
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    for one in found:
        row = one.row
        measure = f"{row.measure} ({row.note})" if row.note else row.measure
        verdict = f"[{_COLOURS[one.verdict]}]{one.verdict.words}[/]"
        goals = goal(row, row.must), goal(row, row.aim)
        cells = (measure, number(row.value), spread(row), *goals, one.result.name)
        table.add_row(verdict, *(cell.replace("[", r"\[") for cell in cells))
    if found:
        console.print(table)
        console.print()
    for result in results:
        console.print(f"{result.name}: {result.raw.get('command', '-')}", markup=False)
        for check in result.raw.get("checks", []):
            if not check["holds"]:
                console.print(f"  [bold red]wrong[/]: {check['what']}")
    console.print(tally(found))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="All figures, what falls short first.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of result files")
    parser.add_argument("--write", type=Path, default=None, help="page whose figures to write anew")
    arguments = parser.parse_args(argv)
    results = read_results(arguments.results)
    if arguments.write is None:
        show(results)
        return
    text = arguments.write.read_text(encoding="utf-8")
    arguments.write.write_text(rewritten(text, results, arguments.write), encoding="utf-8")


if __name__ == "__main__":
    main()
