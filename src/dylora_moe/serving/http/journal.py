"""One line in the log for every request, and an answer to every request, whatever happens in it.

Wraps everything else. Routes add what they know to the line (`noted`).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dylora_moe.serving.http.errors import ErrorResponse, internal
from dylora_moe.serving.http.hanging_up import HungUpError
from dylora_moe.serving.http.limits import StalledError
from dylora_moe.serving.http.logs import log_event

_LINE, _ARRIVED = "dylora.line", "dylora.arrived"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

OnRequest = Callable[[str, str, int], None]
"""Called with route, method and status of every request."""


def request_id(scope: Scope) -> str:
    """The id under which a request stands in the log, and which its answer carries."""
    return str(scope[_LINE]["id"])


def arrived(scope: Scope) -> float:
    """When a request came, before anything of its body did (`time.monotonic`)."""
    return float(scope[_ARRIVED])


def noted(scope: Scope, **fields: Any) -> None:
    """Adds to a request's line in the log."""
    scope[_LINE].update(fields)


class Journal:
    """Middleware: ids, lines in the log, and a last resort.

    Args:
        app: everything else.
        on_request: told of every request when it is over.
        quiet: routes whose success is no line: whoever watches asks them every few seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        on_request: OnRequest,
        quiet: frozenset[str] = frozenset({"/health", "/ready", "/metrics"}),
    ) -> None:
        self._app, self._on_request, self._quiet = app, on_request, quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 0
        scope[_ARRIVED] = time.monotonic()
        line = scope[_LINE] = {"id": f"req_{uuid.uuid4().hex[:20]}"}

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = line["id"]
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except (HungUpError, StalledError, ClientDisconnect) as error:
            # The client is gone, or takes nothing any more.
            noted(scope, hung_up=type(error).__name__)
        except Exception as error:
            refused = internal(error)
            if not status:
                await ErrorResponse(refused)(scope, receive, sent)
        finally:
            self._over(scope, line, status, time.perf_counter() - begun)

    def _over(self, scope: Scope, line: Mapping[str, Any], status: int, seconds: float) -> None:
        # By the route's own path: what people type has no end of forms.
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._on_request(route, method, status)
        if status != 200 or route not in self._quiet:
            log_event(
                "request",
                **line,
                method=method,
                route=route,
                status=status,
                seconds=round(seconds, 4),
            )
