"""Arguments and options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PoolFolder = Annotated[Path, typer.Argument(metavar="POOL", help="The pool's folder.")]

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
]

Device = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="cpu, cuda, cuda:1 or mps; the best there is by itself."),
]

Dtype = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="bf16, fp16 or fp32; what the device is fast in by itself."),
]

MAX_SEED = 2**32 - 1
"""The largest that every generator of random numbers takes."""

Seed = Annotated[
    int | None,
    typer.Option(
        min=0, max=MAX_SEED, help="Seed of everything random; 0, or what the stream file says."
    ),
]

MaxExamples = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="At most this many rows of each file.")
]

MaxLength = Annotated[
    int | None,
    typer.Option(
        min=8, metavar="N", help="Tokens that a row may have; the base's context by itself."
    ),
]

DropLong = Annotated[
    bool, typer.Option("--drop-long", help="Leave rows that are too long out; say how many.")
]

Validation = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Rows to validate on, never learned; else a stable share of the rows is held out.",
    ),
]

Mixed = Annotated[
    bool,
    typer.Option(
        "--mixed", help="The rows are of several skills, unlabelled: they are sorted first."
    ),
]

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting, e.g. --set expert.rank=16; may be repeated.",
    ),
]

Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILES...|STREAM.yaml",
        help="Data files, each one arrival, in this order; or one stream file.",
    ),
]
