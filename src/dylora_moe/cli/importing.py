"""`dylora experts import`: PEFT adapters, each with prompts to route by, into a pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dylora_moe.cli import opening
from dylora_moe.cli.options import AsJson, Device, Dtype, PoolFolder
from dylora_moe.cli.output import command
from dylora_moe.errors import DataError, ExpertError

if TYPE_CHECKING:
    from rich.console import Console

    from dylora_moe.build.pool import Pool
    from dylora_moe.records import ExpertVersion

_CONFIG = "adapter_config.json"
_ENDINGS = (".jsonl", ".txt")


@dataclass(frozen=True)
class Found:
    """An adapter's folder, what it will be called, and its prompts."""

    folder: Path
    name: str
    prompts: Path


def import_adapters(
    pool: PoolFolder,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A PEFT adapter, or a folder of them.")
    ],
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|FOLDER|NAME=FILE",
            help="Example prompts: of the one adapter, of each by name (NAME.jsonl or .txt in a "
            "folder), or of one by name. By itself prompts.jsonl or prompts.txt in each adapter.",
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Bring in adapters that were trained elsewhere: all of them, or none."""
    with command(as_json) as output:
        adapters = find_adapters(folder, prompts or ())
        read_all(adapters)
        with opening.open_pool(pool, device=device, dtype=dtype) as opened:
            taken = [found.name for found in adapters if opened.revision.expert(found.name)]
            if taken:
                raise ExpertError(
                    f"the pool has an expert '{taken[0]}' already; rename its folder or "
                    f"the expert: dylora experts rename {pool} {taken[0]} NEW"
                )
            made = _bring_in(opened, adapters)
            revision = opened.revision

        def render(console: Console) -> None:
            from dylora_moe.cli.tables import pool_table

            console.print(pool_table(revision))

        output.show({"pool": pool, "revision": revision.number, "experts": made}, render)


def find_adapters(folder: Path, prompts: Sequence[str]) -> list[Found]:
    """Adapters below `folder` with their prompts, by name; checked before any is brought in.

    Raises:
        ExpertError: no adapter there.
        DataError: an adapter without prompts, or prompts of an adapter that is not there.
    """
    if (folder / _CONFIG).is_file():
        folders = [folder]
    else:
        folders = sorted(path.parent for path in folder.glob(f"*/{_CONFIG}"))
    if not folders:
        raise ExpertError(
            f"{folder} holds no PEFT adapter (no {_CONFIG}, nor in its folders); check the path"
        )
    named, places = _split(prompts)
    names = [_name(path) for path in folders]
    unknown = [name for name in named if name not in names]
    if unknown:
        raise DataError(
            f"--prompts {unknown[0]}=...: no adapter of that name; there are: {', '.join(names)}"
        )
    only = len(folders) == 1
    return [
        Found(path, name, _prompts_of(path, name, named, places, only))
        for path, name in zip(folders, names, strict=True)
    ]


def read_all(adapters: Sequence[Found]) -> None:
    """Reads every adapter and its prompts, so that the last is found wrong before the first is in.

    Raises:
        ExpertError: an adapter is damaged, or of a kind that cannot be an expert.
        DataError: prompts that cannot be read.
    """
    from dylora_moe.experts.adapter_files import check_adapter
    from dylora_moe.text.prompts import read_prompts

    for found in adapters:
        check_adapter(found.folder)
        read_prompts(found.prompts)


def _bring_in(pool: Pool, adapters: Sequence[Found]) -> list[ExpertVersion]:
    """All of them, or none: if one does not fit, or the gate refuses it, those before it go."""
    start = pool.revision.number
    try:
        return [pool.import_expert(a.folder, a.name, a.prompts) for a in adapters]
    except BaseException:
        while pool.revision.number != start:
            pool.rollback(None)
        raise


def _name(folder: Path) -> str:
    return folder.resolve().name


def _split(prompts: Sequence[str]) -> tuple[dict[str, Path], list[Path]]:
    """What was given by name, and files or folders given as such."""
    named: dict[str, Path] = {}
    places: list[Path] = []
    for entry in prompts:
        name, equals, file = entry.partition("=")
        place = Path(file) if equals and not Path(entry).exists() else Path(entry)
        if not place.exists():
            raise DataError(f"{place}: no such file or folder of prompts; check the path")
        if place == Path(entry):
            places.append(place)
        else:
            named[name] = place
    return named, places


def _prompts_of(
    folder: Path, name: str, named: dict[str, Path], places: Sequence[Path], only: bool
) -> Path:
    if name in named:
        return named[name]
    for place in places:
        if place.is_file() and only:
            return place
        for ending in _ENDINGS:
            if (place / f"{name}{ending}").is_file():
                return place / f"{name}{ending}"
    for ending in _ENDINGS:
        if (folder / f"prompts{ending}").is_file():
            return folder / f"prompts{ending}"
    raise DataError(
        f"{folder}: no prompts to route by; put prompts.jsonl or prompts.txt beside the adapter, "
        f"or give --prompts {name}=FILE"
    )
