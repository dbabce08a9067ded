"""`dylora bench ...`: how well the project does what it claims, on a person's own skills."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dylora_moe.cli.options import MAX_SEED, AsJson, Device, Dtype, Overrides
from dylora_moe.cli.output import command

if TYPE_CHECKING:
    from rich.console import Console

    from dylora_moe.evaluation.continual.document import Document
    from dylora_moe.evaluation.continual.presets import Preset

app = typer.Typer(help="Benchmarks, on your own data.", no_args_is_help=True)

DEFAULT_BASE = "smollm2-135m"


@app.callback()
def _group() -> None:
    """Keeps the group a group while there is one benchmark in it."""


@app.command()
def continual(
    data: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", help="Skills to learn: FOLDER/<skill>/train.jsonl and test.jsonl."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Where results and what they are made with are kept."),
    ],
    preset: Annotated[
        str, typer.Option(metavar="cpu|gpu|full", help="How much is run; see docs/continual.md.")
    ] = "cpu",
    skills: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="These skills, learned in this order.")
    ] = None,
    streams: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="These streams alone.")
    ] = None,
    arms: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="These arms alone, on every stream.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Rows of a skill's visit.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Rows that arrive together.")
    ] = None,
    test_rows: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Test rows of each skill.")
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(
            min=0, max=MAX_SEED, help="Of rows, order and training; may be repeated for several."
        ),
    ] = None,
    base: Annotated[
        str, typer.Option(help="Alias, hub id, folder or GGUF file of the base.")
    ] = DEFAULT_BASE,
    own_prompts: Annotated[
        int,
        typer.Option(
            min=32, metavar="N", help="Prompts the base writes itself: what foreign input is like."
        ),
    ] = 384,
    detectors: Annotated[
        bool,
        typer.Option(
            "--detectors/--no-detectors", help="Replay novelty detectors on the streams, or not."
        ),
    ] = True,
    overrides: Overrides = None,
    results: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the summary goes; to --out by itself."),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Learn a stream of skills without being told them, beside every simpler way of doing so.

    Runs arm by arm; what is done is kept, and the same command goes on with the rest.
    """
    with command(as_json) as output:
        from dylora_moe.config import learn_settings
        from dylora_moe.evaluation.continual import presets

        wanted = presets.chosen(
            preset,
            rows=rows,
            batch=batch,
            test_rows=test_rows,
            seeds=tuple(seed or ()),
            streams=_names(streams),
            arms=_names(arms),
            skills=_names(skills),
        )
        settings = learn_settings(overrides or ())

        from dylora_moe.evaluation.continual import document, runner
        from dylora_moe.evaluation.continual.arms import ARMS
        from dylora_moe.evaluation.continual.detecting import Detected, detected
        from dylora_moe.evaluation.continual.plan import Plan, skill_names

        plan = Plan(wanted, data, out / wanted.name, settings, base, device, dtype, own_prompts)
        plan = replace(plan, preset=replace(wanted, skills=skill_names(plan)))
        tell, novelty = _teller(), Detected()
        with _interrupted():
            found = runner.run(plan, ARMS, tell)
            if detectors:
                novelty = detected(plan, tell)
        words = _command(plan.preset, base, overrides or (), detectors)
        told = document.document(plan.preset, found, words, novelty)
        paths = document.write(told, results or out)
        output.show(
            {
                "preset": wanted.name,
                "rows": told.table.rows,
                "missing": told.table.missing,
                "checks": told.checks,
                "files": paths,
            },
            lambda console: _render(console, told, paths),
        )
        wrong = [one for one in told.checks if not one.holds]
        for one in wrong:
            print(
                f"wrong: {one.what}: {one.difference:.3g}, {one.tolerance:.3g} at most",
                file=sys.stderr,
            )
        if wrong:
            raise typer.Exit(1)


def _names(given: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (given or "").split(",") if name.strip())


def _teller() -> Callable[[str], None]:
    """Writes each step on stderr with the time since the start."""
    start = time.perf_counter()

    def tell(line: str) -> None:
        print(f"{time.perf_counter() - start:7.0f} s  {line}", file=sys.stderr, flush=True)

    return tell


@contextmanager
def _interrupted() -> Iterator[None]:
    """Says on Ctrl-C that nothing is lost."""
    from dylora_moe.errors import LearningInterruptedError

    try:
        yield
    except (KeyboardInterrupt, LearningInterruptedError):
        raise LearningInterruptedError(
            "interrupted: what is done is kept, and the same command goes on with the rest"
        ) from None


def _command(preset: Preset, base: str, overrides: Sequence[str], detectors: bool) -> str:
    """What makes the run again: every option that is not the preset's own."""
    from dylora_moe.evaluation.continual.presets import PRESETS

    usual = PRESETS[preset.name]
    words = ["dylora", "bench", "continual", "--preset", preset.name]
    words += ["--data", "path/to/skills", "--out", "path/to/bench"]
    if preset.skills != usual.skills:
        words += ["--skills", ",".join(preset.skills)]
    if preset.streams != usual.streams:
        words += ["--streams", ",".join(preset.streams)]
    first = next(iter(preset.arms.values()))
    if preset.arms != usual.arms and all(arms == first for arms in preset.arms.values()):
        words += ["--arms", ",".join(first)]
    for option in ("rows", "batch", "test_rows"):
        if getattr(preset, option) != getattr(usual, option):
            words += [f"--{option.replace('_', '-')}", str(getattr(preset, option))]
    if preset.seeds != usual.seeds:
        words += [word for seed in preset.seeds for word in ("--seed", str(seed))]
    words += ["--base", base] if base != DEFAULT_BASE else []
    words += [] if detectors else ["--no-detectors"]
    words += [word for one in overrides for word in ("--set", one)]
    return shlex.join(words)


def _render(console: Console, told: Document, paths: Sequence[Path]) -> None:
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("stream", "arm", "accuracy", "95% interval", "backward transfer"):
        drawn.add_column(title, justify="left" if title in ("stream", "arm") else "right")
    for one in told.figures:
        found, transfer = one.accuracy, one.backward_transfer
        drawn.add_row(
            one.stream,
            one.arm,
            f"{found.value:.1%}",
            f"{found.low:.1%} to {found.high:.1%}",
            "" if transfer is None else f"{100 * transfer.value:+.1f}",
        )
    console.print(drawn)
    console.print()
    claims = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("claim", "value", "95% interval", "must", "aim"):
        claims.add_column(title, justify="left" if title == "claim" else "right", overflow="fold")
    for row in told.table.rows:
        claims.add_row(
            row.measure,
            "" if row.value is None else f"{row.value:.3g}",
            row.between,
            "" if row.must is None else f"{row.must:g}",
            "" if row.aim is None else f"{row.aim:g}",
        )
    console.print(claims)
    for lacking in told.table.missing:
        console.print(f"not in this run: {lacking}", markup=False, style="dim")
    console.print(f"\n{paths[1]}", markup=False)
