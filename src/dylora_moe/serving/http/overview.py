"""Routes that show a pool at a glance: what the page at `/` is made of.

All of them only read. What lies in files and in the database is looked up in threads; what needs
the model is done by the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from fastapi import APIRouter, Path, Query
from prometheus_client import Counter
from pydantic import Field

from dylora_moe.errors import PoolError
from dylora_moe.records import Role, Turn
from dylora_moe.serving.curves import RunCurves, RunSummary, list_runs, run_curves
from dylora_moe.serving.guidance import Guidance, SkillMap
from dylora_moe.serving.http.errors import ApiError, bad
from dylora_moe.serving.http.examples import Strict
from dylora_moe.serving.http.metrics import Metrics
from dylora_moe.serving.http.threads import Threads
from dylora_moe.serving.overview import Overview, Scores, overview, scores
from dylora_moe.serving.served import Served

RunId = Annotated[str, Path(min_length=1, max_length=100)]
EventLimit = Annotated[int, Query(ge=1, le=200)]
AT_ONCE = 4
"""Questions to the engine at a time: each waits for its turn between two steps."""
MESSAGES = 256
"""Turns of a conversation that is routed on trial."""


@dataclass(frozen=True, slots=True)
class ExpertTraffic:
    """Answers since the server was started by the expert of the largest weight (`base` for none),
    and the sum of its weights over all answers."""

    expert: str
    requests: int
    weight: float


@dataclass(frozen=True, slots=True)
class Now:
    """What the server is doing.

    Attributes:
        revision: that new requests are answered by.
        current: revision that the pool is at; newer for the moment in which it is taken up.
        ready: whether requests are taken.
        running, waiting: requests.
        traffic: of experts that had any.
        inbox: whether prompts that are strange to every skill are kept.
        screened: prompts that were held against the skills; `novel`: those strange to all.
    """

    revision: int
    current: int
    ready: bool
    running: int
    waiting: int
    traffic: tuple[ExpertTraffic, ...]
    inbox: bool
    screened: int
    novel: int


@dataclass(frozen=True, slots=True)
class EventSummary:
    """Something that was decided, in words."""

    kind: str
    message: str
    created_at: str
    run: str | None


class RoutedTurn(Strict):
    """A turn of a conversation."""

    role: Role
    content: str


class RouteBody(Strict):
    """What is to be routed: a prompt, or a conversation up to the answer."""

    prompt: Annotated[str, Field(min_length=1)] | None = None
    messages: Annotated[list[RoutedTurn], Field(min_length=1, max_length=MESSAGES)] | None = None


def router(served: Served, metrics: Metrics, inbox: bool = False) -> APIRouter:
    """The routes.

    Args:
        metrics: that count the traffic.
        inbox: whether the server keeps prompts that are strange to every skill.
    """
    # Here: it brings the model library, which nothing else over HTTP needs.
    from dylora_moe.serving.guide import Guide

    routes = APIRouter(tags=["overview"])
    guide, threads = Guide(served.engine), Threads(AT_ONCE)

    # Once a revision: the page asks every few seconds.
    @lru_cache(maxsize=1)
    def overview_of(revision: int) -> Overview:
        return overview(served.pool, served.name)

    @lru_cache(maxsize=1)
    def scores_of(revision: int) -> Scores:
        return scores(served.pool)

    @routes.get("/v1/pool")
    def pool() -> Overview:
        """Base, revision, and every expert with its versions."""
        return overview_of(served.pool.revision.number)

    @routes.get("/v1/pool/now")
    def now() -> Now:
        """What the server does, and who answered since it was started."""
        return _now(served, metrics, inbox)

    @routes.get("/v1/pool/scores")
    def matrix() -> Scores:
        """How the pool did on every skill after each change."""
        return scores_of(served.pool.revision.number)

    @routes.get("/v1/pool/map")
    async def skill_map() -> SkillMap:
        """Skills as points on a plane, near each other where they are hard to tell apart."""
        return await threads.run(guide.map)

    @routes.get("/v1/pool/runs")
    def runs() -> tuple[RunSummary, ...]:
        """The latest runs of learning, newest first."""
        return list_runs(served.pool)

    @routes.get("/v1/pool/runs/{run}")
    def one_run(run: RunId) -> RunCurves:
        """What a run logged, as curves."""
        try:
            return run_curves(served.pool, run)
        except PoolError as error:
            if type(error) is not PoolError:
                raise
            message = "there is no such run; /v1/pool/runs lists those there are"
            raise ApiError(404, message, "run_not_found", "run") from None

    @routes.get("/v1/pool/events")
    def events(limit: EventLimit = 30) -> tuple[EventSummary, ...]:
        """What was decided last and is said in words, newest first."""
        # Most steps of learning leave numbers alone: about two of three events.
        found = reversed(served.pool.registry.events(limit=8 * limit))
        told = [EventSummary(e.kind, e.message, e.created_at, e.run_id) for e in found if e.message]
        return tuple(told[:limit])

    @routes.post("/v1/route")
    async def route(body: RouteBody) -> Guidance:
        """Where a prompt would go, without answering it: at the cost of the trunk alone."""
        prompt = _prompt(body)
        return await threads.run(lambda: guide.route(prompt))

    return routes


def _now(served: Served, metrics: Metrics, inbox: bool) -> Now:
    state, counted = served.engine.state(), _by_expert(metrics.expert_requests)
    weights = _by_expert(metrics.expert_weight)
    return Now(
        revision=state.revision,
        current=served.pool.revision.number,
        ready=state.ready,
        running=state.running,
        waiting=state.waiting,
        traffic=tuple(
            ExpertTraffic(name, round(counted.get(name, 0.0)), weights.get(name, 0.0))
            for name in sorted(counted | weights)
        ),
        inbox=inbox,
        screened=round(sum(_totals(metrics.screened).values())),
        novel=round(sum(_totals(metrics.novel).values())),
    )


def _by_expert(counter: Counter) -> dict[str, float]:
    return {labels[0]: value for labels, value in _totals(counter).items()}


def _totals(counter: Counter) -> dict[tuple[str, ...], float]:
    """A counter's values by the values of its labels."""
    return {
        tuple(sample.labels.values()): sample.value
        for metric in counter.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }


def _prompt(body: RouteBody) -> str | list[Turn]:
    if (body.prompt is None) == (body.messages is None):
        raise bad("give a prompt or messages, and not both", "prompt")
    if body.messages is None:
        return str(body.prompt)
    return [Turn(turn.role, turn.content) for turn in body.messages]
