"""`dylora doctor`: what is well, what is not, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dylora_moe.cli.options import AsJson
from dylora_moe.cli.output import command

if TYPE_CHECKING:
    from rich.console import Console

    from dylora_moe.cli.checks import Check

_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "broken": ("BROKEN", "bold red")}


def doctor(
    pool: Annotated[
        Path | None, typer.Argument(metavar="[POOL]", help="Check this pool too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check packages, machine and base, and a pool's files; exit code 1 if something is broken."""
    with command(as_json) as output:
        from dylora_moe.cli.checks import check_disk, check_machine
        from dylora_moe.cli.pool_checks import check_pool

        checks = list(check_machine())
        checks += [check_disk(Path.cwd())] if pool is None else list(check_pool(pool))
        broken = [check.name for check in checks if check.state == "broken"]
        output.show(
            {"healthy": not broken, "checks": checks}, lambda console: _render(console, checks)
        )
        if broken:
            raise typer.Exit(1)


def _render(console: Console, checks: Iterable[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, show_header=False)
    drawn.add_column()
    drawn.add_column(style="bold")
    drawn.add_column(overflow="fold")
    for check in checks:
        told = check.fact + (f"\n-> {check.remedy}" if check.remedy else "")
        drawn.add_row(Text(*_MARKS[check.state]), check.name, Text(told))
    console.print(drawn)
