"""Errors as OpenAI's API says them: one JSON form for everything that goes wrong.

Knows which error of this package is whose fault; says nothing of the server's insides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from dylora_moe.errors import (
    ConfigError,
    DatabaseUnavailableError,
    DataError,
    DyLoRAError,
    PoolError,
    PromptLengthError,
    QueueFullError,
    StorageFullError,
    UnavailableError,
)
from dylora_moe.serving.http.logs import log_failure

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
         429: "rate_limit_error"}  # fmt: skip
CODES = {400: "invalid_request", 401: "invalid_api_key", 403: "forbidden", 404: "not_found",
         405: "method_not_allowed", 413: "request_too_large", 429: "rate_limit_exceeded",
         431: "headers_too_large",
         500: "internal_error", 503: "unavailable"}  # fmt: skip


class ApiError(Exception):
    """What a client is told.

    Args:
        status: of HTTP.
        message: one line: fact and remedy.
        code: what programs go by; the status's usual one where None.
        param: the field that is wrong.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code = code or CODES.get(status) or HTTPStatus(status).name.lower()
        self.headers = dict(headers or {})

    @property
    def document(self) -> dict[str, Any]:
        """The body."""
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = TYPES.get(self.status, usual)
        return {
            "error": {
                "message": self.message, "type": kind, "param": self.param, "code": self.code,
            }
        }  # fmt: skip


class ErrorResponse(JSONResponse):
    """In ASCII: a message may quote half a character that somebody sent."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.document, error.status, headers=error.headers)

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode("ascii")


def bad(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A request that is wrong."""
    return ApiError(400, message, code, param)


def told(error: DyLoRAError) -> ApiError:
    """An error of the engine or the pool, as whoever asked is told it."""
    if isinstance(error, QueueFullError):
        wait = str(max(1, math.ceil(error.seconds)))
        return ApiError(429, str(error), headers={"retry-after": wait})
    if isinstance(error, UnavailableError):
        message = "the server takes no requests now; come again in a moment"
        return ApiError(503, message, headers={"retry-after": "2"})
    if isinstance(error, DatabaseUnavailableError):
        log_failure(error)
        message = "the pool's database cannot be used now; come again in a moment"
        return ApiError(503, message, headers={"retry-after": "5"})
    if isinstance(error, StorageFullError):
        log_failure(error)
        return ApiError(503, "the server's disk is full; nothing was changed")
    if isinstance(error, PromptLengthError):
        return bad(str(error), None, "context_length_exceeded")
    if isinstance(error, DataError):
        return bad(str(error), None, "invalid_prompt")
    if isinstance(error, ConfigError):
        return bad(str(error))
    return internal(error)


def unknown_model(error: PoolError, name: str) -> ApiError:
    """No such expert or version; or what is wrong with the pool, of which nothing is said."""
    if type(error) is not PoolError:
        return told(error)
    message = f"the model '{name[:100]}' does not exist; /v1/models lists those there are"
    return ApiError(404, message, "model_not_found", "model")


def internal(error: BaseException | str) -> ApiError:
    """Something went wrong here: what it was is in the log, under the id that is told."""
    number = log_failure(error)
    message = f"something went wrong on the server; its log says more under {number}"
    return ApiError(500, message)


def install(app: FastAPI) -> None:
    """Makes every error of the app one of these; what nobody expects is the journal's."""

    @app.exception_handler(ApiError)
    async def _own(request: Request, error: ApiError) -> ErrorResponse:
        return ErrorResponse(error)

    @app.exception_handler(DyLoRAError)
    async def _package(request: Request, error: DyLoRAError) -> ErrorResponse:
        return ErrorResponse(told(error))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> ErrorResponse:
        message = {
            404: f"there is no {request.url.path[:200]}; /openapi.json lists what there is",
            405: f"{request.method} is not for {request.url.path[:200]}",
        }.get(error.status_code, HTTPStatus(error.status_code).phrase.lower())
        return ErrorResponse(ApiError(error.status_code, message, headers=error.headers))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> ErrorResponse:
        return ErrorResponse(validation(error))


def validation(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a request's fields; what was sent is not repeated."""
    first = error.errors()[0]
    # Where a field has several forms, the one that got furthest says what is meant.
    same = [each for each in error.errors() if each["loc"][:2] == first["loc"][:2]]
    first = max(same, key=lambda each: len(each["loc"]))
    place, *path = [str(part) for part in first["loc"]]
    if first["type"] == "json_invalid":
        return bad("the body is no valid JSON", None, "invalid_json")
    if place == "body" and not path:
        message = "the body must be a JSON object, sent with content-type: application/json"
        return bad(message, None, "invalid_json")
    # A union's branches stand in the path too: `stop.list[str].0` is `stop.0`.
    named = [part for part in path if part.isdigit() or part.isidentifier()]
    name = ".".join(part for part in named if part not in ("str", "int", "bool", "float"))
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    reason = first["msg"].removeprefix("Value error, ")
    return bad(f"{name}: {reason[:1].lower()}{reason[1:]}", name, code)
