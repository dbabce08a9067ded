"""`dylora eval`: how the pool does on its own validation rows, or on files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dylora_moe.cli import opening
from dylora_moe.cli.answering import Expert
from dylora_moe.cli.options import AsJson, Device, Dtype, PoolFolder
from dylora_moe.cli.output import command

if TYPE_CHECKING:
    from rich.console import Console


def evaluate(
    pool: PoolFolder,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILES...|NAME=FILE...]",
            help="Rows to score; the pool's own validation rows where there are none.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="At most this many rows of each.")
    ] = None,
    generate: Annotated[
        bool,
        typer.Option(
            "--generate/--no-generate",
            help="Generate answers and check them, or take the loss only.",
        ),
    ] = True,
    expert: Expert = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Score the pool: loss, accuracy of generated answers, and where each skill's rows go."""
    with command(as_json) as output:
        from dylora_moe.cli.tables import scores_table

        named = named_files(files) if files else None
        with opening.open_pool(pool, device=device, dtype=dtype) as opened:
            found = opened.evaluate(named, limit=limit, generate=generate, expert=expert)

        def render(console: Console) -> None:
            console.print(scores_table(found))

        output.show({"pool": pool, "expert": expert, "skills": found}, render)


def named_files(arguments: Sequence[str]) -> dict[str, Path]:
    """`name=file` or `file` (then named as an arrival would be) to files by name.

    Raises:
        ConfigError: two files of one name.
    """
    from dylora_moe.errors import ConfigError
    from dylora_moe.text.stream import name_of

    found: dict[str, Path] = {}
    for argument in arguments:
        name, equals, file = argument.partition("=")
        # A file whose own name holds "=" is a file.
        path = Path(file) if equals and not Path(argument).exists() else Path(argument)
        key = name if path != Path(argument) else name_of(path)
        if key in found:
            raise ConfigError(
                f"two files are called '{key}' ({found[key]}, {path}); name them: NAME=FILE"
            )
        found[key] = path
    return found
