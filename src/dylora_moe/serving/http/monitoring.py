"""The route that Prometheus reads."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from dylora_moe.serving.http.metrics import Metrics


def router(metrics: Metrics) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["metrics"])

    @routes.get("/metrics", response_class=Response)
    def read() -> Response:
        """Every figure, in Prometheus's text form."""
        metrics.forget()
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return routes
