"""The route that Prometheus reads."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from dylora_moe.serving.http.metrics import Metrics
from dylora_moe.serving.http.threads import Threads

AT_ONCE = 2
"""Readings at a time; a pool's database is looked at for each."""


def router(metrics: Metrics) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["metrics"])
    threads = Threads(AT_ONCE)

    def figures() -> bytes:
        metrics.forget()
        return generate_latest(metrics.registry)

    @routes.get("/metrics", response_class=Response)
    async def read() -> Response:
        """Every figure, in Prometheus's text form."""
        return Response(await threads.run(figures), media_type=CONTENT_TYPE_LATEST)

    return routes
