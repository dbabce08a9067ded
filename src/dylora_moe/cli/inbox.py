"""`dylora inbox ...`: prompts that no skill claimed while serving, answered and learned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dylora_moe.cli import opening
from dylora_moe.cli.options import AsJson, Device, Dtype, Overrides, PoolFolder, Seed
from dylora_moe.cli.output import command

if TYPE_CHECKING:
    from rich.console import Console

    from dylora_moe.build.pool import Pool
    from dylora_moe.lifecycle.inbox import InboxCluster

app = typer.Typer(
    help="Prompts that no skill claimed while the pool was served: look, answer, learn.",
    no_args_is_help=True,
)

ClusterId = Annotated[
    str, typer.Argument(metavar="ID", help="The cluster, or 8 letters of a prompt's key.")
]
AnswerFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="JSONL, one prompt and completion a line.")
]


@app.command("list")
def list_clusters(
    pool: PoolFolder, device: Device = None, dtype: Dtype = None, as_json: AsJson = False
) -> None:
    """List the clusters of the inbox: how many prompts, examples, and what they are near to."""
    with command(as_json) as output:
        with opening.open_pool(pool, device=device, dtype=dtype) as opened:
            found = opened.inbox_clusters()
        document = {"pool": pool, "clusters": [summary(cluster) for cluster in found]}
        output.show(document, lambda console: _render_list(console, found))


@app.command()
def show(
    pool: PoolFolder,
    cluster: ClusterId,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Show every prompt of a cluster, how often and when it was asked."""
    with command(as_json) as output:
        with opening.open_pool(pool, device=device, dtype=dtype) as opened:
            found = _find(opened, cluster)
        entries = [{"key": entry.key, **_asked(entry)} for entry in found.entries]
        output.show(
            {**summary(found), "prompts": entries}, lambda console: _render_one(console, found)
        )


@app.command()
def export(
    pool: PoolFolder,
    cluster: ClusterId,
    file: AnswerFile,
    draft: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Let this expert, or base, write first answers; else empty ones."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Of a drafted answer.")] = 128,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Write a cluster's prompts to a file, to be answered there."""
    with command(as_json) as output:
        from dylora_moe.errors import ConfigError
        from dylora_moe.text.answers import answer_sheet

        if file.exists():
            raise ConfigError(f"{file} exists already; remove it or name another file")
        with opening.open_pool(pool, device=device, dtype=dtype) as opened:
            found = _find(opened, cluster)
            prompts = [entry.turns for entry in found.entries]
            drafts = [""] * len(prompts)
            if draft is not None:
                drafts = opened.drafts(prompts, expert=draft, max_new_tokens=max_tokens)
        part = file.with_name(f".{file.name}.part")
        part.write_text(answer_sheet(prompts, drafts), encoding="utf-8")
        os.replace(part, file)
        output.show(
            {"cluster": found.id, "file": file, "prompts": found.size, "drafted": draft},
            lambda console: _say(console, f"{found.size} prompts -> {file}"),
        )


@app.command()
def confirm(
    pool: PoolFolder,
    cluster: ClusterId,
    file: AnswerFile,
    learn: Annotated[
        bool,
        typer.Option("--learn/--no-learn", help="Learn them now, or keep a file for `learn`."),
    ] = True,
    name: Annotated[
        str | None, typer.Option(help="What a new expert is called; else after the cluster.")
    ] = None,
    into: Annotated[
        str | None,
        typer.Option(metavar="SKILL", help="Overrule: the rows belong to this skill."),
    ] = None,
    as_new: Annotated[
        bool, typer.Option("--as-new", help="Overrule: a new expert, whatever the verdict.")
    ] = False,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="The answers are of several skills: sort them first.")
    ] = False,
    overrides: Overrides = None,
    seed: Seed = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Take a person's answers to a cluster's prompts and learn them; unanswered prompts stay."""
    with command(as_json) as output:
        from dylora_moe.cli.learning import learn_into, show_learned
        from dylora_moe.cli.sources import Overrule, Request
        from dylora_moe.lifecycle.inbox import prompts_of
        from dylora_moe.text.answers import read_answers

        with opening.open_pool(pool, device=device, dtype=dtype) as opened:
            found = _find(opened, cluster)
            answered = read_answers(file, prompts_of(found))
            kept = opened.inbox.confirm(name or f"inbox-{found.id}", answered.examples)
            if not learn:
                document = {
                    "cluster": found.id, "file": kept, "rows": len(answered.examples),
                    "unanswered": found.size - len(answered.examples),
                }  # fmt: skip
                line = f"{len(answered.examples)} answers -> dylora learn {pool} {kept}"
                output.show(document, lambda console: _say(console, line))
                return
            request = Request(
                (kept,), tuple(overrides or ()), seed=seed,
                overrule=Overrule(into, as_new, name, mixed),
            )  # fmt: skip
            results = learn_into(opened, request)
            show_learned(output, opened, results)


@app.command()
def drop(
    pool: PoolFolder,
    cluster: ClusterId,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Take a cluster's prompts out of the inbox, for good."""
    with command(as_json) as output:
        with opening.open_pool(pool, device=device, dtype=dtype) as opened:
            found = _find(opened, cluster)
            gone = opened.inbox.remove([entry.key for entry in found.entries])
        output.show(
            {"cluster": found.id, "dropped": gone},
            lambda console: _say(console, f"{found.id}: {gone} prompts dropped"),
        )


def summary(found: InboxCluster) -> dict[str, Any]:
    """A cluster as JSON values, without all of its prompts."""
    return {
        "id": found.id,
        "size": found.size,
        "asked": found.asked,
        "examples": [entry.prompt for entry in found.examples],
        "nearest": [{"expert": name, "separability": value} for name, value in found.nearest],
        "separability": found.separability,
        "apart": found.apart,
        "lacking": found.lacking,
        "last": max(entry.last for entry in found.entries),
    }


def _find(pool: Pool, name: str) -> InboxCluster:
    from dylora_moe.lifecycle.inbox import find_cluster

    return find_cluster(pool.inbox_clusters(), name)


def _asked(entry: Any) -> dict[str, Any]:
    return {
        "turns": [{"role": turn.role, "content": turn.content} for turn in entry.turns],
        "count": entry.count,
        "first": entry.first,
        "last": entry.last,
    }


def _render_list(console: Console, found: tuple[InboxCluster, ...]) -> None:
    from rich.text import Text

    from dylora_moe.cli.tables import interval, table

    if not found:
        console.print("the inbox is empty")
        return
    drawn = table("Inbox", "id", "prompts", "asked", "example", "nearest", "separability", "lacks",
                  right=("prompts", "asked", "lacks"))  # fmt: skip
    for one in found:
        near = ", ".join(f"{name} {value:.2f}" for name, value in one.nearest[:2]) or "-"
        drawn.add_row(
            one.id, str(one.size), str(one.asked), Text(_short(one.examples[0].prompt)), near,
            interval(one.separability), str(one.lacking or ""),
        )  # fmt: skip
    console.print(drawn)


def _render_one(console: Console, found: InboxCluster) -> None:
    _render_list(console, (found,))
    for entry in found.entries:
        _say(console, f"{entry.count:>4}  {entry.last}  {_short(entry.prompt, 400)}")


def _short(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _say(console: Console, line: str) -> None:
    from rich.text import Text

    console.print(Text(line), soft_wrap=True)
