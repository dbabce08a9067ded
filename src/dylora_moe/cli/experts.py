"""`dylora experts ...`: looking at experts, bringing some in, taking copies out, undoing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dylora_moe.cli import opening
from dylora_moe.cli.importing import import_adapters
from dylora_moe.cli.options import AsJson, PoolFolder
from dylora_moe.cli.output import command

if TYPE_CHECKING:
    from rich.console import Console

    from dylora_moe.build.pool import Pool
    from dylora_moe.records import ExpertVersion, PoolRevision

app = typer.Typer(
    help="List, show, import, export, rename, roll back, promote or remove experts.",
    no_args_is_help=True,
)
app.command("import")(import_adapters)

ExpertName = Annotated[str, typer.Argument(metavar="NAME", help="The expert's name or id.")]


@app.command("list")
def list_experts(pool: PoolFolder, as_json: AsJson = False) -> None:
    """List the pool's experts and the skills they serve."""
    with command(as_json) as output:
        from dylora_moe.cli.tables import pool_table

        with opening.open_pool(pool) as opened:
            revision = opened.revision
        document = {
            "pool": pool,
            "revision": revision.number,
            "experts": list(revision.experts),
            "skills": list(revision.skills),
        }
        output.show(document, lambda console: console.print(pool_table(revision)))


@app.command()
def show(pool: PoolFolder, name: ExpertName, as_json: AsJson = False) -> None:
    """Show all that is known of one expert: versions, training, files with their hashes."""
    with command(as_json) as output:
        with opening.open_pool(pool) as opened:
            expert = _find(opened, name)
            versions = opened.registry.versions(expert.expert_id)
            skills = [s for s in opened.revision.skills if s.expert_id == expert.expert_id]
        document = {"expert": expert, "skills": skills, "versions": versions}
        names = [skill.name for skill in skills]
        output.show(document, lambda console: _render_expert(console, expert, names, versions))


@app.command()
def export(
    pool: PoolFolder,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the adapters go.")],
    expert: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this expert; may be repeated. All by itself."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Copy experts out as plain PEFT adapters, each with a model card."""
    with command(as_json) as output:
        with opening.open_pool(pool) as opened:
            chosen = [_find(opened, name) for name in expert or ()]
            for found in chosen:
                opened.export(found.alias, folder)
            if not chosen:
                opened.export(None, folder)
                chosen = list(opened.revision.experts)
        names = [found.alias for found in chosen]
        output.show(
            {"folder": folder, "experts": names},
            lambda console: _say(console, f"{', '.join(names) or 'no experts'} -> {folder}"),
        )


@app.command()
def rename(
    pool: PoolFolder,
    name: ExpertName,
    new: Annotated[str, typer.Argument(metavar="NEW", help="What it is called from now on.")],
    as_json: AsJson = False,
) -> None:
    """Give an expert another name; its id stays."""
    with command(as_json) as output:
        with opening.open_pool(pool) as opened:
            old = _find(opened, name)
            revision = opened.rename(old.alias, new)
        output.show(
            {"old": old.alias, "new": new, "revision": revision.number},
            lambda console: _say(console, f"{old.alias} is now {new} (revision {revision.number})"),
        )


@app.command()
def rollback(
    pool: PoolFolder,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="This expert's last version; else the pool's step."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Undo: an expert's last version, or the pool's last step where no expert is named."""
    with command(as_json) as output:
        with opening.open_pool(pool) as opened:
            alias = None if name is None else _find(opened, name).alias
            before = opened.revision
            after = opened.rollback(alias)
        output.show(
            _change(before, after),
            lambda console: _say(console, _change_words("rolled back", alias, after)),
        )


@app.command()
def promote(
    pool: PoolFolder,
    name: ExpertName,
    version: Annotated[
        int, typer.Argument(min=1, metavar="VERSION", help="Any that was in service before.")
    ],
    instead_of: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="VERSION", help="Only if this one is in service; else nothing changes."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put another version of an expert into service, older or newer than the current one."""
    with command(as_json) as output:
        with opening.open_pool(pool) as opened:
            alias = _find(opened, name).alias
            before = opened.revision
            after = opened.put_back(alias, version, instead_of)
        output.show(
            _change(before, after),
            lambda console: _say(console, _change_words("promoted", alias, after)),
        )


@app.command()
def remove(pool: PoolFolder, name: ExpertName, as_json: AsJson = False) -> None:
    """Take an expert and its skills out of the pool; `experts rollback` brings them back."""
    with command(as_json) as output:
        with opening.open_pool(pool) as opened:
            alias = _find(opened, name).alias
            before = opened.revision
            after = opened.remove(alias)
        output.show(
            _change(before, after),
            lambda console: _say(console, _change_words("removed", alias, after)),
        )


def _find(pool: Pool, name: str) -> ExpertVersion:
    from dylora_moe.errors import ExpertError

    found = pool.revision.expert(name)
    if found is None:
        there = ", ".join(expert.alias for expert in pool.revision.experts) or "none yet"
        raise ExpertError(f"no expert '{name}' in this pool; there are: {there}")
    return found


def _change(before: PoolRevision, after: PoolRevision) -> dict[str, Any]:
    return {
        "before": before.number,
        "revision": after.number,
        "experts": [{"alias": found.alias, "version": found.version} for found in after.experts],
    }


def _change_words(what: str, alias: str | None, after: PoolRevision) -> str:
    left = ", ".join(f"{found.alias} v{found.version}" for found in after.experts) or "none"
    return f"{what}: {alias or 'the last step'}; revision {after.number}, experts: {left}"


def _say(console: Console, line: str) -> None:
    from rich.text import Text

    console.print(Text(line), soft_wrap=True)


def _render_expert(
    console: Console, expert: ExpertVersion, skills: list[str], versions: list[ExpertVersion]
) -> None:
    from dylora_moe.cli.tables import facts_table, table

    config = expert.lora_config
    facts = {
        "id": expert.expert_id,
        "version": expert.version,
        "maturity": f"{expert.maturity:.2f} {expert.maturity_state}",
        "skills": ", ".join(skills) or None,
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "targets": _listed(config.get("target_modules")),
        "parents": ", ".join(expert.parents) or None,
        "folder": expert.storage_path,
        **{
            key.replace("_", " "): value
            for key, value in expert.history.items()
            if isinstance(value, str | int | float)
        },
    }
    console.print(facts_table(expert.alias, facts))
    drawn = table("Versions", "version", "created", "maturity", "weights (SHA-256)")
    for version in versions:
        drawn.add_row(
            str(version.version), version.created_at, f"{version.maturity:.2f}", version.sha256[:16]
        )
    console.print(drawn)


def _listed(value: Any) -> str | None:
    return ", ".join(sorted(map(str, value))) if isinstance(value, list | tuple | set) else value
