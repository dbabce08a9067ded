from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from dylora_moe.records import Event, Turn
from dylora_moe.serving.engine.notes import Note
from dylora_moe.serving.http import logs
from dylora_moe.serving.http.app import create_app
from dylora_moe.serving.http.watcher import Watcher
from dylora_moe.serving.served import Served
from tests.serving import doubles
from tests.serving.double_pool import DoublePool
from tests.serving.http.conftest import settings

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """The log as it is written."""
    loggers = (logs.LOGGER, logging.getLogger("uvicorn"))
    before = [(each.handlers[:], each.level, each.propagate) for each in loggers]
    stream = io.StringIO()
    logs.write_logs(None, stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def ask(served: Served, text: str, **values: Any) -> None:
    client = TestClient(create_app(served, settings(**values)), base_url="http://localhost")
    body = {"model": "pool", "messages": [{"role": "user", "content": text}]}
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    assert client.get("/health").status_code == 200


def test_a_request_is_one_line_that_says_who_answered_and_how_long(
    found: Served, lines: Lines
) -> None:
    ask(found, "my secret")
    (line,) = lines()
    assert line["event"] == "request"
    assert (line["route"], line["status"], line["model"]) == ("/v1/chat/completions", 200, "pool")
    assert (line["experts"], line["tokens"], line["reasons"]) == (["letters@1"], 3, ["stop"])
    assert line["seconds"] >= line["first"] >= 0


def test_prompts_are_no_part_of_it_unless_told(found: Served, lines: Lines) -> None:
    ask(found, "my secret")
    assert "my secret" not in json.dumps(lines())
    ask(found, "my secret", log={"prompts": True})
    last = lines()[-1]
    assert last["answers"] == ["my secret"]
    assert "my secret" in str(last["prompts"])


def test_what_happens_to_the_pool_is_told(found: Served, lines: Lines) -> None:
    watcher = Watcher(found)
    watcher.begin()
    watcher.look()
    assert lines() == []
    doubles.learned(found, "signs")
    registry = cast("DoublePool", found.pool).registry
    registry.told.append(Event("strategy", {}, "sparse from now on"))
    registry.told.append(Event("error", {}, "the disk is full"))
    watcher.look()
    told = {line["event"]: line for line in lines()}
    assert set(told) == {
        "picked_up", "expert_created", "pool_promoted", "pool_strategy", "pool_error",
    }  # fmt: skip
    assert told["expert_created"]["expert"] == "signs"
    assert told["pool_error"]["level"] == "error"
    watcher.look()
    assert len(lines()) == len(told)
    # One transaction may say the same twice.
    registry.told += [Event("strategy", {}, "twice")] * 2
    for _ in range(3):
        watcher.look()
    assert len(lines()) == len(told) + 2


def test_a_strange_prompt_is_told_of_and_not_told(lines: Lines) -> None:
    logs.log_note(Note("strange", "no skill claims it", {"id": "r"}, (Turn("user", "secret"),)))
    logs.log_note(Note("canary rolled back", "letters@2 is taken back", {"expert": "letters"}))
    strange, canary = lines()
    assert strange["event"] == "engine_strange"
    assert "secret" not in json.dumps(strange)
    assert (canary["event"], canary["numbers"]) == (
        "engine_canary_rolled_back", {"expert": "letters"},
    )  # fmt: skip


def test_lines_go_to_a_file_where_one_is_named(tmp_path: Path, lines: Lines) -> None:
    logs.write_logs(tmp_path / "log.jsonl")
    logs.log_event("started", pool="x")
    logging.getLogger("uvicorn.error").warning("odd")
    first, second = (tmp_path / "log.jsonl").read_text("utf-8").splitlines()
    assert json.loads(first)["pool"] == "x"
    assert json.loads(second)["message"] == "odd"
    logs.LOGGER.handlers[0].close()
