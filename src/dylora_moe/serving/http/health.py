"""Routes that anybody may ask: whether the server lives, whether it takes requests, which it is."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Response

from dylora_moe import __version__
from dylora_moe.serving.served import Served


def router(served: Served, stopping: Callable[[], bool]) -> APIRouter:
    """The routes.

    Args:
        stopping: whether the server is being stopped.
    """
    routes = APIRouter(tags=["health"])

    @routes.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @routes.get("/ready", responses={503: {"description": "It takes no requests."}})
    async def ready(response: Response) -> dict[str, str | int]:
        """Whether it takes requests; else why not."""
        state = served.engine.state()
        if state.ready and not stopping():
            return {"status": "ready", "revision": state.revision}
        response.status_code = 503
        return {"status": "not_ready", "code": "stopping" if stopping() else "engine_unavailable"}

    @routes.get("/version")
    async def version() -> dict[str, str]:
        """Of this package."""
        return {"version": __version__}

    return routes
