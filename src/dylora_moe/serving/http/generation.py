"""Routes that answer: `/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.types import Scope

from dylora_moe.serving.engine.requests import Request as Asked
from dylora_moe.serving.http.answers import Answers
from dylora_moe.serving.http.asking import Asking
from dylora_moe.serving.http.bodies import ChatBody, CompletionBody
from dylora_moe.serving.http.forms import ChatForm, CompletionForm
from dylora_moe.serving.http.journal import arrived, request_id
from dylora_moe.serving.http.metrics import Metrics
from dylora_moe.serving.http.responses import Reply
from dylora_moe.serving.http.threads import Threads
from dylora_moe.serving.served import Served

AT_ONCE = 8
"""Requests that are handed to the engine at a time: it encodes one prompt after the other."""


def router(
    served: Served,
    asking: Asking,
    metrics: Metrics,
    log_prompts: bool = False,
    queue: int | None = None,
) -> APIRouter:
    """The routes.

    Args:
        asking: how requests are read.
        metrics: told of every answer.
        log_prompts: whether prompts and answers go into the log.
        queue: requests that may wait; None where only the engine knows.
    """
    routes, threads = APIRouter(tags=["answers"]), Threads(AT_ONCE)

    def answers_to(requests: Sequence[Asked], scope: Scope) -> Answers:
        return Answers(served.engine, requests, metrics, threads, arrived(scope), queue)

    @routes.post("/v1/chat/completions")
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        """Answers a conversation."""
        requests = asking.chat(body, request_id(request.scope))
        answers = answers_to(requests, request.scope)
        form = ChatForm(bool(body.logprobs))
        return await Reply(request, body, answers, form, log_prompts).response()

    @routes.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Goes on with a text."""
        requests = asking.completions(body, request_id(request.scope))
        answers = answers_to(requests, request.scope)
        echoed = [str(each.prompt) for each in requests] if body.echo else None
        form = CompletionForm(body.logprobs is not None, echoed)
        return await Reply(request, body, answers, form, log_prompts).response()

    return routes
