"""`dylora init`: makes a pool."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from dylora_moe.cli import opening
from dylora_moe.cli.options import MAX_SEED, AsJson, Device, Dtype, PoolFolder
from dylora_moe.cli.output import command


def init(
    pool: PoolFolder,
    base: Annotated[
        str, typer.Option(help="smollm2-135m, an id on a hub, a folder, or a GGUF file.")
    ] = "smollm2-135m",
    fmt: Annotated[
        Literal["plain", "chat"],
        typer.Option(
            "--format", help="plain: prompt, newline, answer. chat: the base's own template."
        ),
    ] = "plain",
    system: Annotated[
        str | None, typer.Option(help="System prompt of every conversation without one.")
    ] = None,
    tap: Annotated[
        int | None,
        typer.Option(
            min=1, help="Blocks below it are never adapted; a quarter of the depth by itself."
        ),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME", help="Linear layers to adapt, where they are not found by itself."
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Annotated[
        Literal["int8", "int4", "nf4"] | None,
        typer.Option(
            help="Keep the base's blocks in 8 or 4 bits, for good. On CUDA int4 is nf4, which "
            "needs bitsandbytes."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Seed of what the base writes by itself.")
    ] = 0,
    own_prompts: Annotated[
        int,
        typer.Option(
            min=32, metavar="N", help="Prompts the base writes itself: what foreign input is like."
        ),
    ] = 384,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Keep the registry on a server: postgresql+psycopg://user@host/database. A file "
            "in the folder by itself.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a new pool: a base model, and no experts yet."""
    with command(as_json) as output:
        from dylora_moe.cli.console import progress_console
        from dylora_moe.cli.progress import watch_on
        from dylora_moe.cli.tables import facts_table

        names = None if targets is None else [name.strip() for name in targets.split(",")]
        with (
            watch_on(progress_console()) as watch,
            opening.create_pool(
                pool,
                base=base,
                format=fmt,
                system=system,
                tap=tap,
                targets=names,
                device=device,
                dtype=dtype,
                quantize=quantize,
                seed=seed,
                own_prompts=own_prompts,
                database=database,
                progress=watch,
            ) as made,
        ):
            meta = dict(made.meta)
            document = {"pool": made.path, "revision": made.revision.number, "meta": meta}
        told = ("base", "quantize", "format", "system", "tap", "seed")
        facts = {key: meta[key] for key in told if meta.get(key) is not None}
        output.show(document, lambda console: console.print(facts_table(f"New pool {pool}", facts)))
