"""Routes that say who answers: the router, the base, every expert and version."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path

from dylora_moe.records import BASE_NAME, ExpertVersion
from dylora_moe.serving.http.errors import ApiError
from dylora_moe.serving.served import Served

ModelId = Annotated[str, Path(min_length=1, max_length=200)]


def router(served: Served) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["models"])

    @routes.get("/v1/models")
    def list_models() -> dict[str, Any]:
        """Everything that may be given as `model`."""
        return {"object": "list", "data": list(known_models(served).values())}

    @routes.get("/v1/models/{model}")
    def one_model(model: ModelId) -> dict[str, Any]:
        """One of them; an expert also by its id."""
        expert = served.pool.revision.expert(model)
        found = known_models(served).get(expert.alias if expert is not None else model)
        if found is None:
            message = "there is no such model; /v1/models lists those there are"
            raise ApiError(404, message, "model_not_found", "model")
        return found

    return routes


def known_models(served: Served) -> dict[str, dict[str, Any]]:
    """Every model by its name: the pool first, the base, then experts with their versions."""
    revision = served.pool.revision
    made = seconds_of(revision.created_at)
    found = {
        served.name: _model(served.name, made, {"kind": "router", "revision": revision.number}),
        BASE_NAME: _model(BASE_NAME, made, {"kind": "base"}),
    }
    for expert in revision.experts:
        found[expert.alias] = _expert(expert.alias, expert, "expert")
        for version in served.pool.registry.versions(expert.expert_id):
            name = f"{expert.alias}@{version.version}"
            found[name] = _expert(name, version, "version")
    return found


def _expert(name: str, version: ExpertVersion, kind: str) -> dict[str, Any]:
    told = {
        "kind": kind,
        "expert_id": version.expert_id,
        "version": version.version,
        "maturity": version.maturity_state,
    }
    return _model(name, seconds_of(version.created_at), told)


def _model(name: str, created: int, told: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "dylora", "dylora": told}


def seconds_of(time: str) -> int:
    """Seconds since 1970 of a record's time; 0 where it has none."""
    return int(datetime.fromisoformat(time).timestamp()) if time else 0
