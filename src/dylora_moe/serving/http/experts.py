"""Routes of experts: looked at, made of examples, put back and forth, retired, taken along."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import Field

from dylora_moe.records import ExpertVersion, PoolRevision
from dylora_moe.serving.adapter_zip import adapter_zip
from dylora_moe.serving.commands import Work, learning
from dylora_moe.serving.http.errors import bad
from dylora_moe.serving.http.examples import (
    ExpertName,
    Rows,
    Strict,
    examples_of,
    missing,
)
from dylora_moe.serving.http.inbox import check_overrules
from dylora_moe.serving.http.jobs import jobs_of, submitted
from dylora_moe.serving.served import Served

VersionNumber = Annotated[int, Field(ge=1, lt=2**31)]


class CreateBody(Strict):
    """Examples to learn, and what is overruled."""

    examples: Rows
    name: ExpertName | None = None
    into: ExpertName | None = None
    as_new: bool = False
    mixed: bool = False


class PromoteBody(Strict):
    """Which version is to serve."""

    version: VersionNumber


def router(served: Served, run_tests: bool = False) -> APIRouter:
    """The routes.

    Args:
        run_tests: whether examples may carry tests.
    """
    routes = APIRouter(tags=["experts"])

    def find(name: str) -> ExpertVersion:
        found = served.pool.revision.expert(name)
        if found is None:
            raise missing("expert")
        return found

    def changed(kind: Literal["rollback", "promote", "retire"], name: str, *more: str) -> Any:
        jobs_of(served)
        # By its id, which is what was found: it may be renamed until the job's turn comes.
        found = find(name)
        work = Work(kind, found.alias, (found.expert_id, *more))
        return submitted(served, lambda folder: work)

    @routes.get("/v1/experts")
    def list_experts() -> dict[str, Any]:
        """The experts that serve."""
        revision = served.pool.revision
        found = [_document(one, revision) for one in revision.experts]
        return {"object": "list", "revision": revision.number, "data": found}

    @routes.get("/v1/experts/{expert_id}")
    def one_expert(expert_id: ExpertName) -> dict[str, Any]:
        """One of them, by name or id, with its versions and what happened to it."""
        found = find(expert_id)
        versions = served.pool.registry.versions(found.expert_id)
        return {
            **_document(found, served.pool.revision),
            "versions": [_version(one, found) for one in versions],
            "events": _events(served, found),
        }

    @routes.post("/v1/experts", status_code=202)
    def create(body: CreateBody) -> dict[str, Any]:
        """Learns examples as a job: the verdict decides what becomes of them, unless it is
        overruled."""
        check_overrules(body.into, body.as_new, body.mixed, body.name)
        jobs_of(served)
        rows = examples_of(body.examples, run_tests=run_tests)

        def make(folder: Path) -> Work:
            # The name of the file is made of what it holds.
            file = served.pool.inbox.confirm("uploaded", rows, folder)
            return learning(
                file, name=body.name, into=body.into, as_new=body.as_new, mixed=body.mixed
            )

        return submitted(served, make)

    @routes.post("/v1/experts/{expert_id}/rollback", status_code=202)
    def rollback(expert_id: ExpertName) -> dict[str, Any]:
        """Puts the version back that the current one was trained from, as a job."""
        return dict(changed("rollback", expert_id))

    @routes.post("/v1/experts/{expert_id}/promote", status_code=202)
    def promote(expert_id: ExpertName, body: PromoteBody) -> dict[str, Any]:
        """Puts any version that was ever in service back into it, as a job."""
        found = find(expert_id)
        known = [one.version for one in served.pool.registry.versions(found.expert_id)]
        if body.version not in known:
            raise missing("version")
        if body.version == found.version:
            raise bad("that version is in service already", "version")
        return dict(changed("promote", expert_id, str(body.version)))

    @routes.post("/v1/experts/{expert_id}/retire", status_code=202)
    def retire(expert_id: ExpertName) -> dict[str, Any]:
        """Takes the expert and its skills out of the pool, as a job; its files stay."""
        return dict(changed("retire", expert_id))

    @routes.get(
        "/v1/experts/{expert_id}/adapter",
        response_class=StreamingResponse,
        responses={200: {"content": {"application/zip": {}}}},
    )
    def adapter(
        expert_id: ExpertName, version: Annotated[VersionNumber | None, Query()] = None
    ) -> StreamingResponse:
        """A version as a ZIP of a plain PEFT adapter; the one in service where none is named."""
        found = find(expert_id)
        known = {one.version: one for one in served.pool.registry.versions(found.expert_id)}
        chosen = known.get(version or found.version)
        if chosen is None:
            raise missing("version")
        name = f"{found.alias}-v{chosen.version}.zip"
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        pieces = adapter_zip(served.pool.artifacts, chosen)
        return StreamingResponse(pieces, media_type="application/zip", headers=headers)

    return routes


def _document(expert: ExpertVersion, revision: PoolRevision) -> dict[str, Any]:
    skills = [one for one in revision.skills if one.expert_id == expert.expert_id]
    return {
        "id": expert.expert_id,
        "object": "expert",
        "name": expert.alias,
        "version": expert.version,
        "maturity": expert.maturity,
        "maturity_state": expert.maturity_state,
        "rank": expert.lora_config.get("r"),
        "skills": [{"id": one.skill_id, "name": one.name, "rows": one.count} for one in skills],
        "created": expert.created_at,
    }


def _version(one: ExpertVersion, serving: ExpertVersion) -> dict[str, Any]:
    return {
        "version": one.version,
        "created": one.created_at,
        "in_service": one.version == serving.version,
        "parents": list(one.parents),
        "sha256": one.sha256,
        "history": _numbers(one.history),
    }


def _numbers(history: Mapping[str, Any]) -> dict[str, Any]:
    """Losses, steps, tokens and seconds of its training; what is no number, or not finite, is
    left out."""
    return {
        key: value
        for key, value in history.items()
        if isinstance(value, int | float) and value == value and abs(value) != float("inf")
    }


def _events(served: Served, expert: ExpertVersion) -> list[dict[str, Any]]:
    """Promotions of it, oldest first."""
    names = {one.alias for one in served.pool.registry.versions(expert.expert_id)}
    names |= {expert.alias, expert.expert_id}
    return [
        {
            "created": event.created_at,
            "action": event.numbers.get("action"),
            "version": event.numbers.get("version"),
            "revision": event.numbers.get("revision"),
        }
        for event in served.pool.events("promoted")
        if event.numbers.get("expert") in names
    ]
