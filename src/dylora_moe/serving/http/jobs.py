"""Routes of jobs: what is changing the pool, how far it is, and ending it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from dylora_moe.errors import PoolError
from dylora_moe.serving.commands import Work
from dylora_moe.serving.http.errors import ApiError
from dylora_moe.serving.http.examples import ShortId, missing
from dylora_moe.serving.jobs import Job, Jobs
from dylora_moe.serving.served import Served


def router(served: Served) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["jobs"])

    @routes.get("/v1/jobs")
    def list_jobs() -> dict[str, Any]:
        """Every job that is remembered, oldest first."""
        return {"object": "list", "data": [document_of(job) for job in jobs_of(served).list()]}

    @routes.get("/v1/jobs/{job_id}")
    def one_job(job_id: ShortId) -> dict[str, Any]:
        """One of them, with its progress."""
        try:
            return document_of(jobs_of(served).get(job_id))
        except PoolError:
            raise missing("job") from None

    @routes.delete("/v1/jobs/{job_id}")
    def cancel_job(job_id: ShortId) -> dict[str, Any]:
        """Ends it; what it learned half-way is kept for when the same is asked for again."""
        try:
            return document_of(jobs_of(served).cancel(job_id))
        except PoolError:
            raise missing("job") from None

    return routes


def jobs_of(served: Served) -> Jobs:
    """The jobs of the server.

    Raises:
        ApiError: it runs none.
    """
    if served.jobs is None:
        raise ApiError(403, "this server changes nothing; change the pool with dylora itself")
    return served.jobs


def submitted(served: Served, make: Callable[[Path], Work]) -> dict[str, Any]:
    """A job that was just taken on; `make` as of `Jobs.submit_made`."""
    return document_of(jobs_of(served).submit_made(make))


def document_of(job: Job) -> dict[str, Any]:
    """A job as JSON values."""
    return {"object": "job", **asdict(job)}
