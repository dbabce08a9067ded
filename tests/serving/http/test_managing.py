"""Laws of the routes that look after a pool: over a tiny pool that has learned, and jobs that only
write down what they were told."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import pytest
from fastapi import FastAPI
from peft import LoraConfig
from safetensors.torch import load
from starlette.testclient import TestClient

from dylora_moe.build.pool import Pool
from dylora_moe.lifecycle import inbox
from dylora_moe.lifecycle.inbox import InboxRules
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.records import Turn, VerdictName
from dylora_moe.serving.engine.requests import EngineState
from dylora_moe.serving.http import managing
from dylora_moe.serving.http.app import create_app
from dylora_moe.serving.inbox import InboxBounds, InboxWriter
from dylora_moe.serving.jobs import ENDED, Jobs
from dylora_moe.serving.served import Served
from tests import docs_reading as docs
from tests.pool_fixtures import (
    _no_waiting,
    base_folder,
    copy,
    empty_folder,
    taught,
    taught_folder,
)
from tests.pools import LETTERS, SIGNS, fingerprint, rows
from tests.serving.double_pool import DoublePool
from tests.serving.doubles import DoubleEngine
from tests.serving.http.conftest import error_of, eventually, settings

__all__ = ["_no_waiting", "base_folder", "copy", "empty_folder", "taught", "taught_folder"]
T = TypeVar("T")
TOLD = 'import json, sys; print(json.dumps({"revision": 9, "results": []}))'


class PoolEngine(DoubleEngine):
    """The double, with a real pool for what needs the model."""

    def __init__(self, live: LivePool) -> None:
        super().__init__(DoublePool())
        self.live, self.calls = live, 0

    def state(self) -> EngineState:
        return replace(super().state(), revision=self.live.revision.number)

    def call(self, work: Callable[[LivePool], T]) -> Future[T]:
        done: Future[T] = Future()
        self.calls += 1
        try:
            done.set_result(work(self.live))
        except Exception as error:
            done.set_exception(error)
        return done


@pytest.fixture
def told() -> list[list[str]]:
    """The command lines of the jobs."""
    return []


@pytest.fixture
def served(
    taught: Pool, told: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Served]:
    # Rows of one kind are less alike to a random base.
    monkeypatch.setattr(inbox, "InboxRules", partial(InboxRules, alike=0.3))

    def command(arguments: Sequence[str]) -> list[str]:
        told.append(list(arguments))
        if arguments[0] == "learn":
            # It goes with its job.
            told[-1].append(Path(arguments[2]).read_text(encoding="utf-8"))
        return [sys.executable, "-S", "-c", TOLD]

    jobs = Jobs(taught.jobs, taught.path, command=command)
    engine = PoolEngine(taught.live)
    yield Served(taught, engine, "pool", jobs)
    jobs.stop()
    engine.drain(0.1)


@pytest.fixture
def web(served: Served) -> Iterator[TestClient]:
    app = create_app(served, settings(manage=True), groups=managing.routers(served))
    with TestClient(app, base_url="http://127.0.0.1:8000") as opened:
        yield opened


def sent(examples: Sequence[Any]) -> list[dict[str, str]]:
    return [{"prompt": row.prompt, "completion": row.completion} for row in examples]


def ask(pool: Pool, count: int = 30) -> None:
    for row in rows(SIGNS, count, 5):
        pool.inbox.put(row.turns[:-1], entries=100, size=1 << 20)


def test_experts_are_listed_and_shown_with_their_history(web: TestClient) -> None:
    found = web.get("/v1/experts").json()
    assert [one["name"] for one in found["data"]] == ["letters", "digits"]
    assert found["revision"] == 2
    for name in ("letters", "expert_1"):
        one = web.get(f"/v1/experts/{name}").json()
        assert (one["id"], one["version"], one["skills"][0]["name"]) == ("expert_1", 1, "letters")
        (version,) = one["versions"]
        assert version["in_service"]
        assert version["history"]["best_loss"] > 0
        assert [event["action"] for event in one["events"]] == ["created"]
    assert error_of(web.get("/v1/experts/nobody"))["code"] == "not_found"


def test_an_adapter_comes_as_plain_peft_and_never_damaged(
    web: TestClient, taught: Pool, tmp_path: Path
) -> None:
    answer = web.get("/v1/experts/letters/adapter")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as packed:
        assert packed.testzip() is None
        packed.extractall(tmp_path)
    folder = tmp_path / "letters"
    assert LoraConfig.from_pretrained(str(folder)).r == 8
    assert load((folder / "adapter_model.safetensors").read_bytes())
    assert web.get("/v1/experts/letters/adapter?version=1").content == answer.content
    assert web.get("/v1/experts/letters/adapter?version=2").status_code == 404
    weights = taught.path / taught.experts()[0].files[0].path
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    broken = web.get("/v1/experts/letters/adapter")
    assert broken.status_code == 500
    assert str(taught.path) not in error_of(broken)["message"]


def test_changes_are_jobs_of_the_ordinary_command(
    web: TestClient, taught: Pool, told: list[list[str]]
) -> None:
    pool = str(taught.path)
    for verb in ("rollback", "retire"):
        assert web.post(f"/v1/experts/letters/{verb}").status_code == 202
    eventually(lambda: len(told) == 2)
    assert told == [
        ["experts", "rollback", pool, "expert_1", "--json"],
        ["experts", "remove", pool, "expert_1", "--json"],
    ]
    assert web.post("/v1/experts/letters/promote", json={"version": 1}).status_code == 400
    assert web.post("/v1/experts/letters/promote", json={"version": 7}).status_code == 404
    assert web.post("/v1/experts/nobody/retire").status_code == 404
    eventually(lambda: all(job["state"] in ENDED for job in web.get("/v1/jobs").json()["data"]))
    (first, _) = web.get("/v1/jobs").json()["data"]
    assert web.get(f"/v1/jobs/{first['id']}").json()["result"]["revision"] == 9
    assert web.delete(f"/v1/jobs/{first['id']}").json()["state"] == "done"
    assert web.get("/v1/jobs/none").status_code == 404
    assert web.delete("/v1/jobs/none").status_code == 404


def test_examples_become_a_file_whose_name_no_request_makes(
    web: TestClient, taught: Pool, told: list[list[str]]
) -> None:
    body = {"examples": sent(rows(SIGNS, 30, 5)), "name": "signs", "as_new": True}
    answer = web.post("/v1/experts", json=body)
    assert (answer.status_code, answer.json()["kind"]) == (202, "learn")
    eventually(lambda: len(told) == 1)
    verb, pool, file, *options, read = told[0]
    assert (verb, pool, options) == (
        "learn", str(taught.path), ["--name=signs", "--as-new", "--json"],
    )  # fmt: skip
    assert Path(file).parent == taught.path / "jobs" / answer.json()["id"]
    assert len(read.splitlines()) == 30
    eventually(lambda: not Path(file).exists())


def test_an_upload_that_is_refused_leaves_nothing(
    web: TestClient, served: Served, taught: Pool, told: list[list[str]]
) -> None:
    body = {"examples": sent(rows(SIGNS, 30, 5))}
    # Twice the same: neither takes the other's rows away.
    for _ in range(2):
        assert web.post("/v1/experts", json=body).status_code == 202
    eventually(lambda: {job["state"] for job in web.get("/v1/jobs").json()["data"]} == {"done"})
    assert len({arguments[2] for arguments in told}) == 2
    assert served.jobs is not None
    served.jobs._most_waiting = 0
    assert web.post("/v1/experts", json=body).status_code == 429
    assert list(taught.path.glob("**/uploaded-*")) == []
    assert len(list((taught.path / "jobs").iterdir())) == 2


def test_nothing_is_taken_on_while_the_server_is_being_stopped(
    web: TestClient, served: Served, taught: Pool
) -> None:
    assert served.jobs is not None
    served.jobs.stop()
    body = {"examples": sent(rows(SIGNS, 30, 5))}
    for answer in (
        web.post("/v1/experts", json=body),
        web.post("/v1/experts/letters/retire"),
    ):
        assert (answer.status_code, error_of(answer)["code"]) == (503, "unavailable")
    assert web.get("/v1/jobs").json()["data"] == []
    assert list(taught.path.glob("**/uploaded-*")) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"examples": []},
        {"examples": [{"prompt": "a"}]},
        {"examples": [{"prompt": "a", "completion": ""}]},
        {"examples": [{"prompt": "a", "completion": "b"}, {"text": "c"}]},
        {"examples": [{"messages": [1]}]},
        {"examples": [{"prompt": "a", "completion": "\ud800"}]},
        {"examples": [{"prompt": "a", "completion": "b"}], "name": "../x"},
        {"examples": [{"prompt": "a", "completion": "b"}], "name": "--help"},
        {"examples": [{"prompt": "a", "completion": "b"}], "into": "x", "as_new": True},
        {"examples": [{"prompt": "a", "completion": "b"}], "file": "/etc/passwd"},
    ],
)
def test_what_is_no_examples_is_refused_and_starts_nothing(
    web: TestClient, wrong: dict[str, Any], told: list[list[str]]
) -> None:
    answer = web.post(
        "/v1/experts", content=json.dumps(wrong), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    error_of(answer)
    assert web.get("/v1/jobs").json()["data"] == []
    assert not told


TESTED = [
    {"prompt": "a", "completion": "b", "tests": ["import os"]},
    {"prompt": "a", "completion": "b", "tests": "import os", "check": "exact"},
    {"prompt": "a", "completion": "b", "tests": ["import os"], "check": "tests"},
    {"messages": [{"role": "assistant", "content": "b"}], "tests": ["import os"]},
]


@pytest.mark.parametrize("row", TESTED)
def test_no_row_that_is_sent_brings_python_unless_it_may(
    row: dict[str, Any], served: Served, web: TestClient, taught: Pool, told: list[list[str]]
) -> None:
    ask(taught)
    cluster = web.get("/v1/inbox").json()["data"][0]["id"]
    for path, body in (
        ("/v1/experts", {"examples": [row]}),
        (f"/v1/inbox/{cluster}/confirm", {"answers": [row]}),
        ("/v1/skills/verdict", {"examples": [row]}),
    ):
        answer = web.post(path, json=body)
        assert answer.status_code == 400
        assert "run_tests" in error_of(answer)["message"]
    assert web.get("/v1/jobs").json()["data"] == []
    app = create_app(served, settings(manage=True), groups=managing.routers(served, True))
    with TestClient(app, base_url="http://127.0.0.1:8000") as allowed:
        assert allowed.post("/v1/experts", json={"examples": [row]}).status_code == 202


def test_a_verdict_is_the_pool_s_and_changes_nothing(web: TestClient, taught: Pool) -> None:
    before = fingerprint(taught)
    known = web.post("/v1/skills/verdict", json={"examples": sent(rows(LETTERS, 64, 3))}).json()
    assert known["nearest"][0]["expert"] == "letters"
    new = web.post("/v1/skills/verdict", json={"examples": sent(rows(SIGNS, 64, 5))}).json()
    assert new["separability"]["low"] > known["separability"]["high"]
    assert (new["rows"], new["revision"]) == (64, 2)
    assert new["verdict"] in get_args(VerdictName)
    few = web.post("/v1/skills/verdict", json={"examples": sent(rows(SIGNS, 8, 5))}).json()
    assert few["verdict"] == "unsure"
    assert "too few" in few["reason"]
    many = {"examples": sent(rows(SIGNS, 129, 5))}
    assert web.post("/v1/skills/verdict", json=many).status_code == 400
    assert fingerprint(taught) == before


def test_the_inbox_is_looked_at_answered_and_emptied(
    web: TestClient, served: Served, taught: Pool, told: list[list[str]]
) -> None:
    assert web.get("/v1/inbox").json()["data"] == []
    ask(taught)
    first = web.get("/v1/inbox").json()["data"][0]
    calls = cast("PoolEngine", served.engine).calls
    assert web.get("/v1/inbox").json()["data"][0] == first
    # What is known of a prompt is not asked for again.
    assert cast("PoolEngine", served.engine).calls == calls + 1
    one = web.get(f"/v1/inbox/{first['id']}").json()
    assert len(one["prompts"]) == first["size"] >= 15
    answers = [
        {"prompt": each["messages"][0]["content"], "completion": "yes"} for each in one["prompts"]
    ]
    route = f"/v1/inbox/{first['id']}/confirm"
    other = [*answers, {"prompt": "nobody asked", "completion": "x"}]
    refused = web.post(route, json={"answers": other})
    assert error_of(refused)["param"] == "answers"
    answer = web.post(route, json={"answers": answers, "name": "signs"})
    assert (answer.status_code, answer.json()["subject"]) == (202, "signs")
    eventually(lambda: len(told) == 1)
    assert told[0][0] == "learn"
    # They stay until they are learned.
    assert len(taught.inbox.entries()) == 30
    gone = web.delete(f"/v1/inbox/{first['id']}").json()
    assert gone["dropped"] == first["size"]
    assert len(taught.inbox.entries()) == 30 - first["size"]
    assert web.get(f"/v1/inbox/{first['id']}").status_code == 404


def test_every_route_is_documented() -> None:
    page = docs.ROOT / "docs" / "serving.md"
    tables = [table for table in docs.tables(page) if table[0][0] == "route"][1:]
    documented = {row[0].strip("`") for table in tables for row in table[1:]}
    served = Served(cast("Any", DoublePool()), cast("Any", None), "pool")
    app = FastAPI()
    for group in managing.routers(served):
        app.include_router(group)
    there = {
        f"{method.upper()} {path}"
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    }
    assert documented == there
    assert len(there) == 15


def test_a_server_without_jobs_changes_nothing(served: Served, taught: Pool) -> None:
    ask(taught)
    quiet = Served(served.pool, served.engine, "pool")
    app = create_app(quiet, settings(manage=True), groups=managing.routers(quiet))
    with TestClient(app, base_url="http://127.0.0.1:8000") as web:
        body = {"examples": sent(rows(SIGNS, 30, 5))}
        for answer in (
            web.post("/v1/experts", json=body),
            web.post("/v1/experts/letters/retire"),
            web.get("/v1/jobs"),
        ):
            assert (answer.status_code, error_of(answer)["code"]) == (403, "forbidden")
    assert not (taught.path / "inbox" / "confirmed").exists()


def test_with_a_key_none_of_it_is_open(served: Served) -> None:
    app = create_app(served, settings(), ["a-key-that-nobody-guesses"],
                     groups=managing.routers(served))  # fmt: skip
    with TestClient(app, base_url="http://127.0.0.1:8000") as web:
        for method, route in (
            ("GET", "/v1/experts"), ("GET", "/v1/experts/letters/adapter"), ("GET", "/v1/jobs"),
            ("GET", "/v1/inbox"), ("POST", "/v1/experts"), ("POST", "/v1/skills/verdict"),
            ("DELETE", "/v1/inbox/x"), ("POST", "/v1/experts/letters/retire"),
        ):  # fmt: skip
            assert web.request(method, route).status_code == 401


def test_strange_prompts_are_written_by_a_thread_that_never_holds_anybody_up(
    taught: Pool,
) -> None:
    bounds, told = InboxBounds(entries=2, redact=(r"\d+",)), list[str]()
    writer = InboxWriter(taught.inbox, bounds, told.append, most_waiting=8)
    for prompt in ("a 1", "b 2", "c 3"):
        writer.offer([Turn("user", prompt)])
    writer.close()
    assert {e.prompt for e in taught.inbox.entries()} == {"b [redacted]", "c [redacted]"}
    for _ in range(20):
        writer.offer([Turn("user", "x")])
    assert (writer.lost, len(told)) == (12, 1)
