"""The route that says whether given examples are of a skill that the pool has."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from dylora_moe.serving.http.errors import ApiError
from dylora_moe.serving.http.examples import Strict, examples_of
from dylora_moe.serving.served import Served
from dylora_moe.serving.verdicts import MOST_ROWS, skill_verdict

AT_ONCE = 2
"""Verdicts that are asked for at a time: each makes every answer wait for a moment."""


class VerdictBody(Strict):
    """Examples with their answers."""

    examples: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_ROWS)]


def router(served: Served) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["skills"])
    asked = 0

    @routes.post("/v1/skills/verdict")
    async def ask_verdict(body: VerdictBody) -> dict[str, Any]:
        """What is new about the examples: novel, covered, revised, known or unsure. Nothing is
        learned."""
        nonlocal asked
        examples = examples_of(body.examples)
        if asked >= AT_ONCE:
            message = f"{AT_ONCE} verdicts are being given, as many as may; come again in a moment"
            raise ApiError(429, message, headers={"retry-after": "5"})
        asked += 1
        try:
            stores = served.pool.stores
            future = served.engine.call(lambda live: skill_verdict(live, stores, examples))
            verdict = await asyncio.wrap_future(future)
        finally:
            asked -= 1
        found = asdict(verdict)
        nearest = [{"expert": name, "separability": value} for name, value in found.pop("nearest")]
        return {"object": "verdict", **found, "nearest": nearest}

    return routes
