"""Routes of the inbox: clusters of prompts that no skill claimed, answered and learned."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from dylora_moe.errors import DataError, PoolError
from dylora_moe.records import InboxEntry, Turn
from dylora_moe.serving.commands import Work, learning
from dylora_moe.serving.http.errors import bad, told
from dylora_moe.serving.http.examples import (
    ExpertName,
    Rows,
    ShortId,
    Strict,
    examples_of,
    missing,
)
from dylora_moe.serving.http.jobs import jobs_of, submitted
from dylora_moe.serving.http.threads import Threads
from dylora_moe.serving.served import Served
from dylora_moe.text.answers import checked_answers

if TYPE_CHECKING:
    from dylora_moe.lifecycle.inbox import InboxCluster
    from dylora_moe.serving.inbox import InboxView


AT_ONCE = 2
"""Looks at the clusters at a time: the engine makes their features between two steps."""


class ConfirmBody(Strict):
    """Answers to prompts of a cluster."""

    answers: Rows
    name: ExpertName | None = None
    into: ExpertName | None = None
    as_new: bool = False
    mixed: bool = False


def router(served: Served, run_tests: bool = False) -> APIRouter:
    """The routes.

    Args:
        run_tests: whether answers may carry tests.
    """
    routes, threads = APIRouter(tags=["inbox"]), Threads(AT_ONCE)

    @cache
    def view() -> InboxView:
        # What needs the model is loaded with the pool, not with the routes.
        from dylora_moe.serving.inbox import InboxView

        return InboxView(served.pool.inbox, served.engine)

    def find(cluster_id: str) -> InboxCluster:
        try:
            return view().find(cluster_id)
        except PoolError as error:
            raise missing("cluster") if type(error) is PoolError else told(error) from None

    @routes.get("/v1/inbox")
    async def list_clusters() -> dict[str, Any]:
        """The clusters, the largest first."""
        found = await threads.run(lambda: view().clusters())
        return {"object": "list", "data": [_document(one) for one in found]}

    @routes.get("/v1/inbox/{cluster_id}")
    async def one_cluster(cluster_id: ShortId) -> dict[str, Any]:
        """One of them with every prompt."""
        found = await threads.run(lambda: find(cluster_id))
        return {**_document(found), "prompts": [_prompt(entry) for entry in found.entries]}

    @routes.post("/v1/inbox/{cluster_id}/confirm", status_code=202)
    async def confirm(cluster_id: ShortId, body: ConfirmBody) -> dict[str, Any]:
        """Takes answers to its prompts and learns them as a job; the prompts leave the inbox once
        they are learned."""
        return await threads.run(lambda: confirmed(cluster_id, body))

    @routes.delete("/v1/inbox/{cluster_id}")
    async def drop(cluster_id: ShortId) -> dict[str, Any]:
        """Takes its prompts out of the inbox, for good."""
        return await threads.run(lambda: dropped(cluster_id))

    def confirmed(cluster_id: str, body: ConfirmBody) -> dict[str, Any]:
        from dylora_moe.lifecycle.inbox import prompts_of

        check_overrules(body.into, body.as_new, body.mixed, body.name)
        jobs_of(served)
        found, rows = find(cluster_id), examples_of(body.answers, "answers", run_tests)
        try:
            answered = checked_answers(rows, prompts_of(found))
        except DataError as error:
            raise bad(str(error), "answers") from None

        def make(folder: Path) -> Work:
            # The name of the file is made here, of the cluster's own id.
            file = served.pool.inbox.confirm(f"inbox-{found.id}", answered.examples, folder)
            return learning(
                file, name=body.name, into=body.into, as_new=body.as_new, mixed=body.mixed
            )

        return submitted(served, make)

    def dropped(cluster_id: str) -> dict[str, Any]:
        found = find(cluster_id)
        gone = served.pool.inbox.remove([entry.key for entry in found.entries])
        return {"id": found.id, "object": "inbox.cluster", "deleted": True, "dropped": gone}

    return routes


def check_overrules(into: str | None, as_new: bool, mixed: bool, name: str | None) -> None:
    """Refuses overrules that contradict each other."""
    if into is not None and as_new:
        raise bad("into and as_new contradict each other; send one of them", "as_new")
    if mixed and (into is not None or as_new or name is not None):
        raise bad("mixed rows are of several skills: nothing can be overruled for them", "mixed")


def _document(found: InboxCluster) -> dict[str, Any]:
    parted = found.separability
    return {
        "id": found.id,
        "object": "inbox.cluster",
        "size": found.size,
        "asked": found.asked,
        "examples": [_prompt(entry) for entry in found.examples],
        "nearest": [{"expert": name, "separability": value} for name, value in found.nearest],
        "separability": None
        if parted is None
        else {"value": parted.value, "low": parted.low, "high": parted.high},
        "apart": found.apart,
        "lacking": found.lacking,
    }


def _prompt(entry: InboxEntry) -> dict[str, Any]:
    return {
        "messages": [_message(turn) for turn in entry.turns],
        "count": entry.count,
        "first": entry.first,
        "last": entry.last,
    }


def _message(turn: Turn) -> dict[str, str]:
    return {"role": turn.role, "content": turn.content}
