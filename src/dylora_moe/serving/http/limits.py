"""What a request may be: its size while it comes in, its depth, and how long it may take to come.

Reads the whole body before the application sees anything, so that what is too large, too deep or
too slow never gets there. Of what anybody may ask for nothing is read. Knows bytes; no routes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dylora_moe.serving.http.errors import ApiError, ErrorResponse, bad

# To the end of the body where a text is not closed: else each quote would be tried anew.
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class _HungUpError(Exception):
    """The client is gone before it had said all."""


class StalledError(OSError):
    """The client takes nothing any more."""


class Limits:
    """Middleware: bounds of every request.

    Args:
        app: what comes after.
        body_bytes: of a request.
        header_bytes: of its head. The server's parser bounds only heads that come in pieces.
        nesting: depth of its JSON.
        seconds: that a body may take to arrive, and a client to take a piece of an answer.
        requests: that may be open at once.
        public: paths that need no key: so many may be open besides, and their bodies, which they
            have no use for, are not read.
        watching: paths that do not count: whoever watches must see a server that is full.
    """

    def __init__(
        self,
        app: ASGIApp,
        body_bytes: int,
        header_bytes: int,
        nesting: int,
        seconds: float,
        requests: int,
        public: Collection[str] = (),
        watching: frozenset[str] = frozenset({"/health", "/ready", "/metrics"}),
    ) -> None:
        self._app, self._nesting = app, nesting
        self._body_bytes, self._header_bytes = body_bytes, header_bytes
        self._seconds, self._requests, self._watching = seconds, requests, watching
        self._public = frozenset(public)
        self._open = {True: 0, False: 0}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] in self._watching:
            await self._bounded(scope, receive, send)
            return
        public = scope["path"] in self._public
        if self._open[public] >= self._requests:
            message = f"{self._requests} requests are open, as many as may; come again in a moment"
            await ErrorResponse(ApiError(429, message, headers={"retry-after": "1"}))(
                scope, receive, send
            )
            return
        self._open[public] += 1
        try:
            await self._bounded(scope, receive, send)
        finally:
            self._open[public] -= 1

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if head_size(scope) > self._header_bytes:
                raise ApiError(431, f"path and headers are larger than {self._header_bytes} bytes")
            if scope["path"] in self._public:
                body, send = b"", _closing(scope, send)
            else:
                async with asyncio.timeout(self._seconds):
                    body = await self._read(Headers(scope=scope), receive)
            if depth_over(body, self._nesting):
                message = f"the body's JSON is nested deeper than {self._nesting}"
                raise bad(message, None, "nesting_too_deep")
        except _HungUpError:
            return
        except TimeoutError:
            message = f"the body took longer than {self._seconds:g} s"
            refused = ApiError(408, message, headers={"connection": "close"})
            await ErrorResponse(refused)(scope, receive, send)
            return
        except ApiError as error:
            error.headers.setdefault("connection", "close")
            await ErrorResponse(error)(scope, receive, send)
            return
        await self._app(scope, _again(body, receive), self._patient(send))

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > self._body_bytes:
            raise self._too_large()
        pieces, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _HungUpError
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            # What says no length, or a wrong one, is counted as it comes.
            if size > self._body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(pieces)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._body_bytes} bytes")

    def _patient(self, send: Send) -> Send:
        """Gives up on a client that takes nothing."""

        async def sent(message: Message) -> None:
            try:
                # Not `wait_for`, which loses a cancellation that comes as the message goes out.
                async with asyncio.timeout(self._seconds):
                    await send(message)
            except TimeoutError:
                raise StalledError(f"nothing was taken for {self._seconds:g} s") from None

        return sent


def head_size(scope: Scope) -> int:
    """Bytes of path, query and headers."""
    headers = sum(len(name) + len(value) for name, value in scope["headers"])
    return headers + len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])


def depth_over(body: bytes, limit: int) -> bool:
    """Whether brackets outside of texts are nested deeper than the limit."""
    depth = 0
    for bracket in _TEXT.sub(b"", body).translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > limit:
            return True
    return False


def _closing(scope: Scope, send: Send) -> Send:
    """Ends the connection behind the answer where a body is to come that nobody reads."""
    headers = Headers(scope=scope)
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return send

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["connection"] = "close"
        await send(message)

    return sent


def _again(body: bytes, receive: Receive) -> Receive:
    """The body that was read, and after it whatever comes."""
    given = False

    async def received() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return received
