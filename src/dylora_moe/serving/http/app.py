"""The application: groups of routes, and what stands in front of them.

Wires; decides nothing. Order of what a request goes through: journal, guard, limits, routes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI

from dylora_moe import __version__
from dylora_moe.serving.http import errors, generation, health, models, monitoring, overview, page
from dylora_moe.serving.http.asking import Asking
from dylora_moe.serving.http.guard import LOOPBACK_NAMES, PUBLIC, Guard
from dylora_moe.serving.http.journal import Journal
from dylora_moe.serving.http.limits import Limits
from dylora_moe.serving.http.metrics import Metrics
from dylora_moe.serving.http.watcher import Watcher
from dylora_moe.serving.served import Served
from dylora_moe.serving.settings import ServeSettings


class Stopping:
    """Whether the server is being stopped; set by a signal, read by `/ready`."""

    def __init__(self) -> None:
        self.begun = False

    def __call__(self) -> bool:
        return self.begun


def create_app(
    served: Served,
    settings: ServeSettings,
    keys: Sequence[str] = (),
    admin_keys: Sequence[str] = (),
    *,
    stopping: Stopping | None = None,
    groups: Iterable[APIRouter] = (),
    public: Collection[str] = PUBLIC,
) -> FastAPI:
    """The application over a pool that is served.

    Args:
        keys: one of which a client needs; none are asked for where there are none.
        admin_keys: one of which is needed to change something.
        stopping: set when the server is being stopped.
        groups: further routes.
        public: paths that need no key, besides the page's.
    """
    stopping = stopping or Stopping()
    metrics = Metrics(served, settings.engine.tokens)
    watcher = Watcher(served)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with watcher.running():
            yield

    app = FastAPI(
        title="DyLoRA-MoE",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses={"4XX": {"description": "Said in OpenAI's form of errors."}},
    )
    errors.install(app)
    limits = settings.limits
    asking = Asking(
        served.name,
        settings.temperature,
        limits.max_tokens,
        limits.choices,
        limits.messages,
        limits.stop,
        limits.top_logprobs,
        limits.seconds,
    )
    for routes in (
        health.router(served, stopping),
        models.router(served),
        generation.router(served, asking, metrics, settings.log.prompts, settings.engine.queue),
        monitoring.router(metrics),
        overview.router(served, metrics, settings.inbox.enabled),
        page.router(),
        *groups,
    ):
        app.include_router(routes)
    open_paths = page.page_paths().union(public)
    # The last one added is the outermost.
    app.add_middleware(
        Limits,
        body_bytes=limits.body_bytes,
        header_bytes=limits.header_bytes,
        nesting=limits.nesting,
        seconds=limits.stall_seconds,
        requests=limits.requests,
        public=open_paths,
    )
    app.add_middleware(
        Guard,
        keys=keys,
        hosts=own_names(settings, keys),
        public=open_paths,
        admin_keys=admin_keys,
        manage=settings.manage,
    )
    app.add_middleware(Journal, on_request=metrics.request)
    return app


def own_names(settings: ServeSettings, keys: Sequence[str]) -> list[str] | None:
    """Names under which the server may be asked; any where a key keeps strangers out."""
    if keys and not settings.hosts:
        return None
    return [*LOOPBACK_NAMES, settings.host, *settings.hosts]
