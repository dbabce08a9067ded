"""Who may come in: deny by default, before anything of a request is read.

Wraps the whole application, so that no route can be forgotten: what is not in the list of public
paths needs a key, if there are keys at all, and what is not known to change nothing needs an admin
key. Knows headers and paths; knows no routes.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from dylora_moe.serving.http.errors import ApiError, ErrorResponse

PUBLIC = frozenset({"/health", "/ready", "/version"})
"""Paths that need no key: they say that the server is there and which version it is."""

READING = frozenset({"GET", "HEAD", "OPTIONS"})
ASKING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/route", "/v1/skills/verdict"})
"""Paths that take a body and change nothing."""
INBOX = "/v1/inbox"
"""What lies here is what other people asked."""

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


class Guard:
    """Middleware: host, origin and key of every request.

    Args:
        app: what is guarded.
        keys: one of which a client needs; none are asked for where there are none.
        hosts: names under which the server may be asked; any where None. A page that a browser
            got from elsewhere can point its own name at this machine (DNS rebinding), and where no
            key is asked for, that name is all that gives it away.
        public: paths that need no key.
        admin_keys: one of which is needed to change something, and to read the inbox; they open
            everything else too.
        manage: whether that needs no more than asking does.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str],
        hosts: Collection[str] | None,
        public: Collection[str] = PUBLIC,
        admin_keys: Sequence[str] = (),
        manage: bool = False,
    ) -> None:
        self._app, self._manage = app, manage
        self._keys = [key.encode() for key in keys]
        self._admin_keys = [key.encode() for key in admin_keys]
        self._hosts = None if hosts is None else {name.lower() for name in hosts}
        self._public = frozenset(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            # There are no web sockets here; the server closes what is not answered.
            return
        refused = self.refusal(scope["method"], scope["path"], Headers(scope=scope))
        if refused is None:
            await self._app(scope, receive, send)
        else:
            await ErrorResponse(refused)(scope, receive, send)

    def refusal(self, method: str, path: str, headers: Headers) -> ApiError | None:
        """Why a request may not come in; None if it may."""
        host = headers.get("host", "")
        if self._hosts is not None and host_name(host) not in self._hosts:
            message = "this server is asked under another name than its own; see its setting hosts"
            return ApiError(403, message, "host_not_allowed")
        origin = headers.get("origin")
        # A page of another site: without CORS it could not read the answer, but it could ask.
        if origin is not None and origin.lower().rpartition("://")[2] != host.lower():
            return ApiError(403, "pages of other sites may not ask here", "origin_not_allowed")
        if path in self._public:
            return None
        given = headers.getlist("authorization")
        client, admin = _is_one_of(given, self._keys), _is_one_of(given, self._admin_keys)
        if self._keys and not client and not admin:
            return ApiError(
                401,
                "an API key is needed: Authorization: Bearer KEY",
                headers={"www-authenticate": "Bearer"},
            )
        if admin or self._manage or not manages(method, path):
            return None
        if self._admin_keys:
            message = "an admin key is needed for this: Authorization: Bearer KEY"
            return ApiError(403, message, "admin_key_needed")
        message = (
            "changing the pool and reading its inbox are off, and this is one of those or no "
            "route; start the server with --admin-key-file FILE, or with --manage where nobody "
            "else can reach it"
        )
        return ApiError(403, message, "managing_off")


def manages(method: str, path: str) -> bool:
    """Whether a request is not known to change nothing, or reads what other people asked."""
    if path == INBOX or path.startswith(f"{INBOX}/"):
        return True
    return method not in READING and path not in ASKING


def _is_one_of(given: Sequence[str], keys: Sequence[bytes]) -> bool:
    if len(given) != 1:
        return False
    scheme, _, key = given[0].partition(" ")
    # Every key is compared, in constant time: how long it takes says nothing of any.
    found = [hmac.compare_digest(key.strip().encode(), known) for known in keys]
    return scheme.lower() == "bearer" and any(found)


def host_name(host: str) -> str:
    """A Host header's name without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
