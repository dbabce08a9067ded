"""What `doctor` finds in a pool: its schema, its holder, its files by their hashes, its runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dylora_moe.cli import opening
from dylora_moe.cli.checks import Check, check_disk
from dylora_moe.cli.wording import size
from dylora_moe.errors import DyLoRAError
from dylora_moe.records import Artifact, PoolRevision

if TYPE_CHECKING:
    from dylora_moe.build.inspection import Inspection


def check_pool(pool: Path) -> Iterator[Check]:
    """The checks of one pool, without loading its base."""
    yield check_disk(pool)
    try:
        found = opening.inspect_pool(pool)
    except DyLoRAError as error:
        yield Check("pool", "broken", " ".join(str(error).split()))
        return
    yield _summary(found)
    yield Check("schema", "ok", f"version {found.schema_version}")
    yield _lock(found)
    yield check_files(pool, found.revision, found.meta)
    yield _waiting(found)
    yield _unfinished(found)


def check_files(pool: Path, revision: PoolRevision, meta: Mapping[str, Any]) -> Check:
    """Every file of the revision, and the base's own prompts, against their hashes."""
    own = Artifact(**meta["own"]) if "own" in meta else None
    artifacts = _artifacts(revision, own)
    wrong: dict[Artifact, str] = {}
    held = 0
    for artifact in artifacts:
        path = pool / artifact.path
        if not path.is_file():
            wrong[artifact] = f"{artifact.path} is missing"
            continue
        held += path.stat().st_size
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != artifact.sha256:
                wrong[artifact] = f"{artifact.path} is damaged"
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        first = next(iter(wrong))
        remedy = _remedy(pool, revision, first, is_own=first == own)
        return Check("files", "broken", wrong[first] + more, remedy)
    return Check("files", "ok", f"{size(held)} in {len(artifacts)}, all as their hashes say")


def _remedy(pool: Path, revision: PoolRevision, wrong: Artifact, *, is_own: bool) -> str:
    for expert in revision.experts:
        if wrong in expert.files:
            without = f"dylora experts remove {pool} {expert.alias}, then learn or import it again"
            # A version of its own that it was trained from stands in; without one it has to go.
            older = any(ref.startswith(f"{expert.expert_id}@") for ref in expert.parents)
            back = f"dylora experts rollback {pool} {expert.alias}, or " if older else ""
            return back + without
    remedy = "restore it from a copy of the pool"
    # The base's own prompts belong to every revision: no step back does without them.
    if not is_own:
        remedy += f", or, if it came with the last step: dylora experts rollback {pool}"
    return remedy


def _artifacts(revision: PoolRevision, own: Artifact | None) -> list[Artifact]:
    found = [file for expert in revision.experts for file in expert.files]
    for skill in revision.skills:
        found += [*skill.examples, *skill.validation, skill.features]
    found += [one for one in (own, revision.router, revision.scores) if one is not None]
    return list(dict.fromkeys(found))


def _waiting(found: Inspection) -> Check:
    if found.waiting_fault is not None:
        return Check("waiting", "broken", found.waiting_fault)
    return Check("waiting", "ok", f"{found.waiting} rows")


def _summary(found: Inspection) -> Check:
    revision = found.revision
    form = found.meta.get("quantize")
    base = found.meta.get("base", "?") + (f" in {form}" if form else "")
    return Check(
        "pool",
        "ok",
        f"revision {revision.number} on {base}: {len(revision.experts)} experts, "
        f"{len(revision.skills)} skills",
    )


def _lock(found: Inspection) -> Check:
    if found.holder is None:
        return Check("lock", "ok", "free")
    return Check("lock", "note", found.holder)


def _unfinished(found: Inspection) -> Check:
    if not found.unfinished:
        return Check("runs", "ok", "none unfinished")
    return Check(
        "runs",
        "note",
        f"{len(found.unfinished)} unfinished: {', '.join(found.unfinished)}",
        "learn the same data again to go on, or with --no-resume to start over",
    )
