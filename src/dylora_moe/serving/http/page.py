"""The page at `/`: files of the package that anybody may read, since none of them holds data.

A path names one of these files or nothing. Knows nothing of what they show: they ask for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request, Response

TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
INDEX = "index.html"
HEADERS = {
    # Nothing from elsewhere, nothing inline, in no frame: whatever a model writes stays text.
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    # Asked again each time, and answered by 304: a page never goes with another server's routes.
    "cache-control": "no-cache",
}


@cache
def page_files() -> dict[str, bytes]:
    """The page's files by name."""
    folder = files("dylora_moe.serving") / "page"
    return {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if file.name.rpartition(".")[2] in TYPES
    }


def page_paths() -> frozenset[str]:
    """Every path of the page; none needs a key."""
    return frozenset(_path(name) for name in page_files())


def router() -> APIRouter:
    """The routes, one a file."""
    routes = APIRouter()
    for name, body in page_files().items():
        routes.add_api_route(
            _path(name), _answering(name, body), methods=["GET"], include_in_schema=False
        )
    return routes


def _path(name: str) -> str:
    return "/" if name == INDEX else f"/page/{name}"


def _answering(name: str, body: bytes) -> Callable[[Request], Awaitable[Response]]:
    kind = TYPES[name.rpartition(".")[2]]
    tag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'

    async def answer(request: Request) -> Response:
        headers = {**HEADERS, "etag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=kind, headers=headers)

    return answer
