"""Records to rows and back: what the registry's tables hold for each record.

Pure: knows neither connections nor files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dylora_moe.errors import PoolError
from dylora_moe.records import Artifact, Event, ExpertVersion, PoolRevision, SkillRecord

Row = Mapping[Any, Any]
"""A row by the names of its columns."""

_FLOAT = "$float"


def encode(value: Any) -> Any:
    """The value as JSON that every database takes: mappings' keys become text, tuples lists.

    A loss that is not finite is worth storing, and JSON proper has no word for it: it becomes
    `{"$float": "nan"}`.

    Raises:
        PoolError: for what JSON cannot hold, such as a tensor.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: str(float(value))}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): encode(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [encode(each) for each in value]
    raise PoolError(
        f"a value of type {type(value).__name__} cannot be stored as JSON; "
        "store plain numbers, text, lists and mappings"
    )


def decode(value: Any) -> Any:
    """The inverse of `encode`."""
    if isinstance(value, dict):
        if value.keys() == {_FLOAT}:
            return float(value[_FLOAT])
        return {key: decode(each) for key, each in value.items()}
    if isinstance(value, list):
        return [decode(each) for each in value]
    return value


def artifact_values(artifact: Artifact) -> dict[str, str]:
    return {"path": artifact.path, "sha256": artifact.sha256}


def version_values(version: ExpertVersion) -> dict[str, Any]:
    """The row of `expert_versions`."""
    return {
        "expert_id": version.expert_id,
        "skill_id": version.skill_id,
        "alias": version.alias,
        "version": version.version,
        "lora_config": encode(version.lora_config),
        "storage_path": version.storage_path,
        "sha256": version.sha256,
        "files": [artifact_values(each) for each in version.files],
        "maturity": version.maturity,
        "maturity_state": version.maturity_state,
        "parents": list(version.parents),
        "history": encode(version.history),
        "created_at": version.created_at,
    }


def version_of(row: Row) -> ExpertVersion:
    return ExpertVersion(
        expert_id=row["expert_id"],
        skill_id=row["skill_id"],
        alias=row["alias"],
        version=row["version"],
        lora_config=decode(row["lora_config"]),
        storage_path=row["storage_path"],
        files=tuple(Artifact(**each) for each in row["files"]),
        maturity=row["maturity"],
        parents=tuple(row["parents"]),
        history=decode(row["history"]),
        created_at=row["created_at"],
    )


def manifest_values(revision: PoolRevision) -> dict[str, Any]:
    """What a revision is made of: experts by id and version, with what may change between
    revisions without a new version (alias, maturity)."""
    return {
        "experts": [
            {
                "expert_id": each.expert_id,
                "version": each.version,
                "alias": each.alias,
                "maturity": each.maturity,
            }
            for each in revision.experts
        ],
        "skills": [_skill_values(each) for each in revision.skills],
        "router": _optional_values(revision.router),
        "scores": _optional_values(revision.scores),
    }


def skill_of(values: Mapping[str, Any]) -> SkillRecord:
    files = {
        split: tuple(Artifact(**each) for each in values[split])
        for split in ("examples", "validation")
    }
    return SkillRecord(**{**values, **files, "features": Artifact(**values["features"])})


def optional_artifact(values: Mapping[str, str] | None) -> Artifact | None:
    return None if values is None else Artifact(**values)


def manifest_artifacts(manifest: Mapping[str, Any]) -> list[Artifact]:
    """The files that a manifest names itself; those of its experts stand in their versions."""
    found = [optional_artifact(manifest["router"]), optional_artifact(manifest["scores"])]
    for skill in map(skill_of, manifest["skills"]):
        found += [*skill.examples, *skill.validation, skill.features]
    return [each for each in found if each is not None]


def event_values(event: Event, created_at: str) -> dict[str, Any]:
    return {
        "created_at": event.created_at or created_at,
        "kind": event.kind,
        "message": event.message,
        "run_id": event.run_id,
        "numbers": encode(event.numbers),
    }


def event_of(row: Row) -> Event:
    return Event(
        kind=row["kind"],
        numbers=decode(row["numbers"]),
        message=row["message"],
        run_id=row["run_id"],
        created_at=row["created_at"],
    )


def _skill_values(skill: SkillRecord) -> dict[str, Any]:
    return {
        "skill_id": skill.skill_id,
        "name": skill.name,
        "expert_id": skill.expert_id,
        "version": skill.version,
        "count": skill.count,
        "examples": [artifact_values(each) for each in skill.examples],
        "validation": [artifact_values(each) for each in skill.validation],
        "features": artifact_values(skill.features),
    }


def _optional_values(artifact: Artifact | None) -> dict[str, str] | None:
    return None if artifact is None else artifact_values(artifact)
