"""Answers as HTTP responses: whole, or as a stream of server-sent events.

Either ends the engine's work as soon as the client is gone.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from dylora_moe.errors import DyLoRAError
from dylora_moe.serving.engine.requests import Finished
from dylora_moe.serving.http.answers import Answers
from dylora_moe.serving.http.bodies import SampledBody
from dylora_moe.serving.http.documents import HEADER, header_of, provenance_of, usage_of
from dylora_moe.serving.http.errors import ApiError, internal
from dylora_moe.serving.http.forms import Form
from dylora_moe.serving.http.hanging_up import unless_hung_up
from dylora_moe.serving.http.journal import noted, request_id


class Reply:
    """One HTTP request for answers, on its way out.

    Args:
        request: of HTTP.
        body: what was sent.
        answers: asked for, but not yet begun.
        form: how they look.
        log_prompts: whether prompts and answers go into the log.
    """

    def __init__(
        self, request: Request, body: SampledBody, answers: Answers, form: Form, log_prompts: bool
    ) -> None:
        self._request, self._body, self._answers, self._form = request, body, answers, form
        self._log_prompts = log_prompts
        self._numbers = [each.id for each in answers.requests]
        self._head = {
            "id": form.prefix + request_id(request.scope).removeprefix("req_"),
            "created": int(time.time()),
            "model": body.model,
        }

    async def response(self) -> Response:
        """The response; of a stream its beginning.

        Raises:
            ApiError: no such model, or an answer that could not be finished.
            DyLoRAError: as `Engine.submit`.
            HungUpError: the client is gone.
        """
        noted(self._request.scope, model=self._body.model, stream=bool(self._body.stream))
        if self._log_prompts:
            prompts = [each.prompt for each in self._answers.requests]
            noted(self._request.scope, prompts=prompts)
        receive = self._request.receive
        await unless_hung_up(receive, self._answers.begin(self._body.model))
        if self._body.stream:
            return EventStream(self._events(), self._answers)
        try:
            found = await unless_hung_up(receive, self._answers.whole())
        finally:
            self._answers.cancel()
        ends = [each.end for each in found if each.end is not None]
        self._note(ends, [each.text for each in found])
        choices = [self._form.whole(index, each) for index, each in enumerate(found)]
        document = {
            **self._head,
            "object": self._form.whole_object,
            "choices": choices,
            "usage": usage_of(ends, self._numbers, self._body.n or 1),
        }
        return JSONResponse(document, headers={HEADER: header_of(ends, self._numbers)})

    async def _events(self) -> AsyncIterator[bytes]:
        ends: list[Finished | None] = [None] * len(self._numbers)
        texts = [""] * len(self._numbers)
        for index in range(len(ends)):
            opening = self._form.opening(index)
            if opening is not None:
                yield self._chunk([opening])
        try:
            async for index, event in self._answers.events():
                if isinstance(event, Finished):
                    ends[index] = event
                    found = provenance_of(event.provenance, self._numbers[index])
                    yield self._chunk([self._form.closing(index, event)], dylora=found)
                elif event.text or event.logprobs:
                    texts[index] += event.text
                    yield self._chunk([self._form.piece(index, event)])
        except ApiError as error:
            # The status is said already: the client's library raises on this, and without [DONE]
            # nobody takes what there is for the whole.
            noted(self._request.scope, failed=error.code)
            yield _event(error.document)
            return
        done = [end for end in ends if end is not None]
        self._note(done, texts)
        if self._body.with_usage:
            yield self._chunk([], usage=usage_of(done, self._numbers, self._body.n or 1))
        yield b"data: [DONE]\n\n"

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        usage = {"usage": None} if self._body.with_usage else {}
        head = {**self._head, "object": self._form.chunk_object}
        return _event({**head, "choices": choices, **usage, **more})

    def _note(self, ends: list[Finished], texts: list[str]) -> None:
        found = [end.provenance for end in ends if end.provenance is not None]
        first = [end.first for end in ends if end.first is not None]
        noted(
            self._request.scope,
            revision=max((each.revision for each in found), default=None),
            experts=sorted({f"{each.expert}@{each.version}" if each.version else each.expert
                            for each in found}),
            novel=max((each.novel for each in found if each.novel is not None), default=None),
            reasons=sorted({end.reason for end in ends}),
            prompt_tokens=sum(end.prompt_tokens for end in ends[:: self._body.n or 1]),
            tokens=sum(end.tokens for end in ends),
            waited=round(max(end.waited for end in ends), 4),
            first=round(min(first), 4) if first else None,
        )  # fmt: skip
        if self._log_prompts:
            noted(self._request.scope, answers=texts)


class EventStream(Response):
    """Server-sent events; when it ends, however, nobody waits for the answers any more."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], answers: Answers) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._answers = events, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_hung_up(receive, self._stream(send))
        finally:
            self._answers.cancel()

    async def _stream(self, send: Send) -> None:
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(head)
        async with aclosing(self._events) as events:  # type: ignore[type-var]
            try:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            except DyLoRAError as error:
                body = _event(internal(error).document)
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(document: dict[str, Any]) -> bytes:
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
