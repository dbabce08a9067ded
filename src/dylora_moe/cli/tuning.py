"""`dylora tune`: which settings suit one's own skills."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dylora_moe.cli.options import (
    AsJson,
    Device,
    DropLong,
    Dtype,
    MaxExamples,
    MaxLength,
    Overrides,
    Seed,
    Sources,
)
from dylora_moe.cli.output import command
from dylora_moe.cli.sources import Request, read_stream
from dylora_moe.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from dylora_moe.tuning.outcome import Tuned
    from dylora_moe.tuning.ranks import RankCurve
    from dylora_moe.tuning.search import Trial
    from dylora_moe.tuning.space import Value

SETTINGS_FILE = "learn.yaml"


def tune(
    files: Sources,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where trials and what was found are kept.")
    ],
    minutes: Annotated[
        float, typer.Option(min=0, help="How long to search, once base and rows are read.")
    ] = 30.0,
    trials: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="At most so many trials in all.")
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help="Search this setting alone; may be repeated. All by itself."
        ),
    ] = None,
    overrides: Overrides = None,
    max_examples: MaxExamples = None,
    seed: Seed = None,
    max_length: MaxLength = None,
    drop_long: DropLong = False,
    base: Annotated[
        str, typer.Option(help="smollm2-135m, an id on a hub, a folder, or a GGUF file.")
    ] = "smollm2-135m",
    fmt: Annotated[
        Literal["plain", "chat"], typer.Option("--format", help="As the pool's will be.")
    ] = "plain",
    system: Annotated[
        str | None, typer.Option(help="System prompt of every conversation without one.")
    ] = None,
    tap: Annotated[
        int | None, typer.Option(min=1, help="Blocks below it are never adapted, as of `init`.")
    ] = None,
    quantize: Annotated[
        Literal["int8", "int4", "nf4"] | None, typer.Option(help="As of `init`.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Search for the settings that suit your skills, a file each, within a time budget.

    No pool is needed, and none is changed. The same command goes on where it ended.
    """
    with command(as_json) as output:
        from dylora_moe.cli.console import progress_console

        stream = read_stream(
            Request(
                tuple(files),
                tuple(overrides or ()),
                max_examples,
                seed,
                max_length=max_length,
                drop_long=drop_long,
            )
        )

        mixed = [one.arrival.name for one in stream.incoming if one.overrule.mixed]
        if mixed:
            raise ConfigError(
                f"{mixed[0]}: rows of several skills make no one expert to try settings on; give a "
                "file for each skill"
            )

        from dylora_moe.evaluation.files import write_whole
        from dylora_moe.tuning.outcome import document, words
        from dylora_moe.tuning.tune import Ask
        from dylora_moe.tuning.tune import tune as tune_settings

        console = progress_console()
        ask = Ask(
            tuple(stream.arrivals), stream.settings, tuple(search or ()), base, fmt, system, tap,
            device, dtype, quantize,
        )  # fmt: skip
        found = tune_settings(
            ask,
            out,
            minutes=minutes,
            trials=trials,
            tell=lambda trial: console.print(_line(trial), markup=False, highlight=False),
            stage=lambda what: console.print(what, style="dim", markup=False),
        )
        settings = out / SETTINGS_FILE
        write_whole(settings, document(found))
        output.show(
            {
                "trials": found.trials,
                "first": found.first.number,
                "best": found.best.number,
                "against": found.against,
                "better": found.better,
                "message": found.message,
                "set": words(found.settings),
                "file": settings,
                "ranks": found.ranks,
            },
            lambda console: _render(console, found, settings),
        )


def _render(console: Console, found: Tuned, settings: Path) -> None:
    console.print(_table(found))
    console.print(f"\n{found.message}", markup=False, highlight=False)
    if found.better:
        _tell(console, found.settings)
    console.print(f"{settings}", markup=False, highlight=False)
    if found.ranks is not None:
        console.print(_curve(found.ranks))
        console.print(f"\n{found.ranks.message}", markup=False, highlight=False)
        _tell(console, found.ranks.settings)


def _tell(console: Console, settings: Mapping[str, Any]) -> None:
    """The command that learns with them."""
    from dylora_moe.tuning.outcome import words

    told = "".join(f" --set {shlex.quote(one)}" for one in words(settings))
    console.print(f"  dylora learn POOL FILES{told}", markup=False, highlight=False)


def _curve(ranks: RankCurve) -> Table:
    """Rank against quality, from the lowest."""
    from dylora_moe.cli.tables import table
    from dylora_moe.cli.wording import duration

    titles = ("rank", "parameters", "loss", "95% interval", "time")
    drawn = table("Rank against quality, on rows that the search never saw", *titles, right=titles)
    for one in ranks.points:
        name = f"{one.rank} (suggested)" if one.rank == ranks.suggested else str(one.rank)
        ends = f"{one.against.low:.3f} to {one.against.high:.3f}"
        cells = [f"{one.parameters:,}", f"{one.against.value:.3f}", ends, duration(one.seconds)]
        drawn.add_row(name, *cells)
    return drawn


def _table(found: Tuned) -> Table:
    """The trials, best first; those that were cut short at the end."""
    from dylora_moe.cli.tables import table
    from dylora_moe.cli.wording import duration

    keys = list(dict.fromkeys(key for one in found.trials for key in one.values))
    named = {key: key.removeprefix("consolidation.").removeprefix("expert.") for key in keys}
    drawn = table(
        "Trials, the best first", "trial", "loss", "time", *named.values(),
        right=("trial", "loss", "time", *named.values()),
    )  # fmt: skip
    for one in sorted(found.trials, key=lambda one: (not one.whole, one.ratio)):
        cells = [_shown(one.values[key]) if key in one.values else "" for key in keys]
        loss = f"{one.ratio:.3f}" if one.whole else "cut short"
        drawn.add_row(str(one.number), loss, duration(one.seconds), *cells)
    return drawn


def _line(trial: Trial) -> str:
    values = ", ".join(f"{key} {_shown(value)}" for key, value in trial.values.items())
    came = f"{trial.ratio:.3f}" if trial.whole else f"cut short ({trial.note})"
    return f"trial {trial.number}: loss {came}, {trial.seconds:.0f} s: {values}"


def _shown(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
