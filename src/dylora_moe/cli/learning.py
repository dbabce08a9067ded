"""`dylora plan` and `dylora learn`: the verdict on new data, and what follows from it."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dylora_moe.cli import opening
from dylora_moe.cli.options import (
    AsJson,
    Device,
    DropLong,
    Dtype,
    MaxExamples,
    MaxLength,
    Mixed,
    Overrides,
    PoolFolder,
    Seed,
    Sources,
    Validation,
)
from dylora_moe.cli.output import Output, command
from dylora_moe.cli.sources import Overrule, Request, Stream, read_stream

if TYPE_CHECKING:
    from dylora_moe.build.pool import Pool
    from dylora_moe.cli.progress import CommandWatch
    from dylora_moe.lifecycle.results import LearnResult, Plan


def plan(
    pool: PoolFolder,
    files: Sources,
    overrides: Overrides = None,
    max_examples: MaxExamples = None,
    seed: Seed = None,
    validation: Validation = None,
    max_length: MaxLength = None,
    drop_long: DropLong = False,
    mixed: Mixed = False,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Say what new data is before any training: known or novel, how sure, at what cost."""
    with command(as_json) as output:
        from dylora_moe.cli.console import progress_console
        from dylora_moe.cli.progress import watch_on
        from dylora_moe.cli.tables import plan_table

        stream = read_stream(
            Request(
                tuple(files),
                tuple(overrides or ()),
                max_examples,
                seed,
                validation,
                Overrule(mixed=mixed),
                max_length=max_length,
                drop_long=drop_long,
            )
        )
        with (
            watch_on(progress_console(), stream.names) as watch,
            opening.open_pool(pool, device=device, dtype=dtype) as opened,
        ):
            watch.stage("base", "loading")
            plans: list[Plan] = []
            # Together as far as they are of one sort, as they are learned.
            for mixed, items in groupby(stream.incoming, key=lambda item: item.overrule.mixed):
                plans += opened.plan_arrivals(
                    [item.arrival for item in items],
                    mixed=mixed,
                    seed=stream.settings.seed,
                    settings=stream.settings,
                    watch=watch,
                )
        output.show(
            {"pool": pool, "plans": [_flat(plan) for plan in plans]},
            lambda console: console.print(plan_table(plans)),
        )


def learn(
    pool: PoolFolder,
    files: Sources,
    overrides: Overrides = None,
    max_examples: MaxExamples = None,
    seed: Seed = None,
    validation: Validation = None,
    max_length: MaxLength = None,
    drop_long: DropLong = False,
    into: Annotated[
        str | None,
        typer.Option(metavar="SKILL", help="Overrule: the rows belong to this skill."),
    ] = None,
    as_new: Annotated[
        bool, typer.Option("--as-new", help="Overrule: a new expert, whatever the verdict.")
    ] = False,
    mixed: Mixed = False,
    name: Annotated[
        str | None, typer.Option(help="What a new expert is called; else as its file.")
    ] = None,
    growth: Annotated[
        bool, typer.Option("--growth/--no-growth", help="Whether new experts are allowed.")
    ] = True,
    resume: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Go on with unfinished runs, or start over."),
    ] = True,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Take in new data: verdict, expert, training, router, gate, and a report at the end."""
    with command(as_json) as output:
        from dylora_moe.cli.console import progress_console
        from dylora_moe.cli.progress import watch_on

        stream = read_stream(
            Request(
                tuple(files),
                tuple(overrides or ()),
                max_examples,
                seed,
                validation,
                Overrule(into, as_new, name, mixed),
                growth,
                max_length,
                drop_long,
            )
        )
        with opening.open_pool(pool, device=device, dtype=dtype) as opened:
            with watch_on(progress_console(), stream.names) as watch:
                results = _learn(opened, stream, watch, resume=resume)
            show_learned(output, opened, results)


def learn_into(pool: Pool, request: Request) -> list[LearnResult]:
    """Learns what a request names into a pool that is open, for commands that do more than that."""
    from dylora_moe.cli.console import progress_console
    from dylora_moe.cli.progress import watch_on

    stream = read_stream(request)
    with watch_on(progress_console(), stream.names) as watch:
        return _learn(pool, stream, watch, resume=True)


def _learn(pool: Pool, stream: Stream, watch: CommandWatch, *, resume: bool) -> list[LearnResult]:
    for run in pool.unfinished() if resume else ():
        arrival = run.state().get("arrival", "an arrival")
        watch.note(f"unfinished run {run.id} ({arrival}) goes on when its data comes again")
    watch.stage("base", "loading")
    pool.check_arrivals(stream.orders(), settings=stream.settings)
    results: list[LearnResult] = []
    # Together as far as they overrule the same, so that no other process comes in between.
    for overrule, items in groupby(stream.incoming, key=lambda item: item.overrule):
        results += pool.learn_arrivals(
            [item.arrival for item in items],
            name=overrule.name,
            into=overrule.into,
            as_new=overrule.as_new,
            mixed=overrule.mixed,
            seed=stream.settings.seed,
            settings=stream.settings,
            watch=watch,
            resume=resume,
        )
    return results


def show_learned(output: Output, pool: Pool, results: list[LearnResult]) -> None:
    """Writes the report and prints what was learned."""
    from rich.console import Console

    from dylora_moe.cli.reporting import write
    from dylora_moe.cli.tables import matrix_table, pool_table, results_table

    written, revision = write(pool), pool.revision

    def render(console: Console) -> None:
        console.print(results_table(results))
        if written.matrices.columns:
            console.print(matrix_table(written.matrices))
        console.print(pool_table(revision))
        console.print(written.summary.headline, soft_wrap=True)
        console.print(f"Report: {written.html}", soft_wrap=True)

    document = {
        "pool": pool.path,
        "revision": revision.number,
        "results": [_flat(result) for result in results],
        "experts": list(revision.experts),
        **written.document(),
    }
    output.show(document, render)


def _flat(item: Any) -> dict[str, Any]:
    """A plan or result as one flat object: the verdict is its name, the rest of it beside it."""
    from dylora_moe.cli.output import plain

    body: dict[str, Any] = plain(item)
    verdict = body.pop("verdict")
    return {
        "arrival": body.pop("arrival"),
        "verdict": verdict.pop("name"),
        **verdict,
        **body,
    }
