from __future__ import annotations

import json
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from starlette.testclient import TestClient

from dylora_moe.errors import QueueFullError, UnavailableError
from dylora_moe.serving.engine.requests import Choice, Finished, Provenance
from dylora_moe.serving.http import journal
from dylora_moe.serving.http.app import create_app
from dylora_moe.serving.http.asking import choice_of, seed_of
from dylora_moe.serving.http.documents import HEADER_BYTES, header_of
from dylora_moe.serving.served import Served
from tests.serving import doubles
from tests.serving.doubles import DoubleEngine
from tests.serving.http.conftest import Ask, Json, error_of, eventually, settings


def events(response: httpx.Response) -> list[Json]:
    """The chunks of a stream, which must end as OpenAI's do."""
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def asked(found: Served) -> list[Any]:
    engine = found.engine
    assert isinstance(engine, DoubleEngine)
    return engine.requests


def test_a_conversation_is_answered_in_openai_s_form(chat: Ask) -> None:
    document = chat().json()
    assert document["object"] == "chat.completion"
    assert document["id"].startswith("chatcmpl-")
    (choice,) = document["choices"]
    assert choice["message"] == {"role": "assistant", "content": "one two three", "refusal": None}
    assert choice["finish_reason"] == "stop"
    usage = document["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] == 7


def test_the_time_of_an_answer_runs_from_when_it_was_asked_for(
    found: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = TestClient(
        create_app(found, settings(limits={"seconds": 5})), base_url="http://localhost"
    )
    body = {"model": "base", "prompt": "a"}
    assert client.post("/v1/completions", json=body).status_code == 200
    assert 0 < asked(found)[-1].seconds < 5
    before = len(asked(found))
    # As if it had waited for its turn to be encoded.
    monkeypatch.setattr(journal, "time", SimpleNamespace(
        monotonic=lambda: time.monotonic() - 6, perf_counter=time.perf_counter,
    ))  # fmt: skip
    late = client.post("/v1/completions", json=body)
    assert (late.status_code, error_of(late)["code"]) == (504, "deadline_exceeded")
    assert len(asked(found)) == before


def test_a_full_queue_is_told_before_a_prompt_is_encoded(
    found: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = cast("DoubleEngine", found.engine)
    client = TestClient(
        create_app(found, settings(engine={"queue": 3})), base_url="http://localhost"
    )
    full = replace(engine.state(), waiting=3)
    monkeypatch.setattr(engine, "state", lambda: full)
    response = client.post("/v1/completions", json={"model": "base", "prompt": "a"})
    assert (response.status_code, engine.asked) == (429, 0)
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("n", "experts", "told", "weighted"),
    [(1, 1, 1, True), (1, 40, 1, True), (6, 1, 6, True), (6, 40, 6, False), (16, 40, 8, False)],
)
def test_the_header_of_provenance_leaves_out_what_has_no_room(
    n: int, experts: int, told: int, weighted: bool
) -> None:
    weights = {f"a-rather-long-name-of-an-expert-{index}@12": 1 / 3 for index in range(experts)}
    found = Provenance(1200, "a-rather-long-name-of-an-expert-0", "expert_1200", 12, weights, 1 / 3,
                       True, 2 / 3, seed=2**31)  # fmt: skip
    line = header_of([Finished("stop", 1, 1, found)] * n, [f"req_{'0' * 20}-{i}" for i in range(n)])
    assert len(line) <= HEADER_BYTES
    entries = json.loads(line)
    assert {each["expert"] for each in entries} == {found.expert}
    assert (len(entries), ["weights" in each for each in entries]) == (told, [weighted] * told)


def test_provenance_stands_in_header_and_usage_and_says_enough_to_ask_again(chat: Ask) -> None:
    response = chat(temperature=0.7, seed=5)
    (found,) = response.json()["usage"]["dylora"]
    assert json.loads(response.headers["x-dylora-provenance"]) == [found]
    assert (found["expert"], found["version"], found["revision"], found["seed"]) == (
        "letters", 1, 3, 5,
    )  # fmt: skip
    assert found["weights"] == {"letters@1": 0.97}
    assert found["id"].startswith(response.headers["x-request-id"])


@pytest.mark.parametrize("kind", ["chat", "complete"])
def test_a_stream_holds_the_same_text_as_the_whole(
    kind: str, request: pytest.FixtureRequest
) -> None:
    ask = request.getfixturevalue(kind)
    whole = ask(n=2).json()
    chunks = events(ask(n=2, stream=True, stream_options={"include_usage": True}))
    texts, ended = ["", ""], 0
    for chunk in chunks:
        assert chunk["object"] == whole["object"] + (".chunk" if kind == "chat" else "")
        for choice in chunk["choices"]:
            delta = choice["delta"].get("content", "") if kind == "chat" else choice["text"]
            texts[choice["index"]] += delta
            if choice["finish_reason"]:
                ended += 1
                assert chunk["dylora"]["expert"] == "letters"
    assert ended == 2
    expected = [
        choice["message"]["content"] if kind == "chat" else choice["text"]
        for choice in whole["choices"]
    ]
    assert texts == expected
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert [each["expert"] for each in chunks[-1]["usage"]["dylora"]] == ["letters", "letters"]


def test_usage_comes_only_where_it_was_asked_for(chat: Ask) -> None:
    assert all("usage" not in chunk for chunk in events(chat(stream=True)))


def test_every_field_reaches_the_engine(chat: Ask, found: Served) -> None:
    chat(n=2, stop=["x", "y"], seed=11, temperature=0.5, top_p=0.9, top_k=7, max_tokens=9)
    first, second = asked(found)
    assert (first.stop, first.temperature, first.top_p) == (("x", "y"), 0.5, 0.9)
    assert (first.top_k, first.max_tokens) == (7, 9)
    assert 110 < first.seconds < 120
    assert first.seed == 11
    assert second.seed not in (None, 11)
    assert first.id != second.id
    assert first.choice == Choice()


def test_what_is_not_said_is_the_server_s(complete: Ask, chat: Ask, found: Served) -> None:
    complete()
    chat()
    completion, conversation = asked(found)
    assert (completion.max_tokens, conversation.max_tokens) == (16, 1024)
    assert (completion.temperature, completion.top_p, completion.seed) == (0.0, 1.0, None)


def test_max_completion_tokens_is_max_tokens(chat: Ask) -> None:
    choice = chat(max_completion_tokens=2).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one two", "length")
    assert chat(max_completion_tokens=2, max_tokens=3).status_code == 400


def test_a_stop_text_is_no_part_of_the_answer(chat: Ask, complete: Ask) -> None:
    assert chat(stop=" three").json()["choices"][0]["message"]["content"] == "one two"
    assert complete(stop=["zz", "o t"]).json()["choices"][0]["text"] == "one tw"


def test_seeds_of_choices_differ_and_are_the_same_again() -> None:
    seeds = [seed_of(3, index) for index in range(50)]
    assert seeds == [seed_of(3, index) for index in range(50)]
    assert len(set(seeds)) == 50
    assert seeds[0] == 3
    for seed in (-1, 2**62):
        assert 0 <= (seed_of(seed, 0) or 0) < 2**32


def test_who_is_meant() -> None:
    assert choice_of("pool", "pool") == Choice()
    assert choice_of("base", "pool") == Choice("base")
    assert choice_of("letters@12", "pool") == Choice("letters", 12)
    for name in ("letters", "letters@", "@3", "letters@x", "letters@²", "base@1"):
        assert choice_of(name, "pool") == Choice(name)


@pytest.mark.parametrize(
    ("model", "expert", "version"),
    [("pool", "letters", 1), ("digits", "digits", 1), ("expert_2", "digits", 1),
     ("digits@1", "digits", 1), ("base", "base", None)],
)  # fmt: skip
def test_the_model_chooses_who_answers(
    model: str, expert: str, version: int | None, complete: Ask
) -> None:
    (found,) = complete(model=model).json()["usage"]["dylora"]
    assert (found["expert"], found["version"]) == (expert, version)


@pytest.mark.parametrize("model", ["nobody", "letters@9", "base@1", "../../etc/passwd", "é" * 50])
def test_an_unknown_model_is_404(model: str, complete: Ask) -> None:
    response = complete(model=model)
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"


@pytest.mark.parametrize("prompt", ["a b", ["a b"], [5, 6], [[5, 6]], ["a b", "c"], [[5], [6, 7]]])
def test_every_form_of_a_prompt_is_taken(prompt: Any, complete: Ask, found: Served) -> None:
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    prompts = prompt if several else [prompt]
    document = complete(prompt, n=2).json()
    assert [choice["index"] for choice in document["choices"]] == list(range(2 * len(prompts)))
    assert [request.prompt for request in asked(found)] == [p for p in prompts for _ in range(2)]
    words = sum(len(p.split()) if isinstance(p, str) else len(p) for p in prompts)
    assert document["usage"]["prompt_tokens"] == words


def test_echo_puts_the_prompt_in_front(complete: Ask) -> None:
    assert complete("a b", echo=True).json()["choices"][0]["text"] == "a ba b"
    chunks = events(complete("a b", echo=True, stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "a ba b"
    assert error_of(complete([5], echo=True))["code"] == "unsupported_parameter"
    assert error_of(complete(echo=True, logprobs=0))["code"] == "unsupported_parameter"


def test_logprobs_of_a_conversation(chat: Ask) -> None:
    shown = chat(logprobs=True, top_logprobs=3).json()["choices"][0]["logprobs"]["content"]
    assert [each["token"] for each in shown] == ["one", " two", " three"]
    assert shown[1]["bytes"] == list(b" two")
    assert [other["logprob"] for other in shown[0]["top_logprobs"]] == [-0.25, -1.5, -9999.0]
    assert chat(logprobs=True).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert chat().json()["choices"][0]["logprobs"] is None
    assert error_of(chat(top_logprobs=3))["param"] == "top_logprobs"
    assert error_of(chat(logprobs=True, top_logprobs=21))["param"] == "top_logprobs"


def test_logprobs_of_a_completion_in_the_whole_and_in_pieces(complete: Ask) -> None:
    shown = complete(logprobs=1).json()["choices"][0]["logprobs"]
    assert shown["tokens"] == ["one", " two", " three"]
    assert shown["text_offset"] == [0, 3, 7]
    assert shown["top_logprobs"][1] == {" two": -0.25}
    offsets = [
        offset
        for chunk in events(complete(logprobs=1, stream=True))
        for choice in chunk["choices"]
        for offset in (choice["logprobs"] or {"text_offset": []})["text_offset"]
    ]
    assert offsets == [0, 3, 7]


def part(text: str) -> Json:
    return {"type": "text", "text": text}


def test_messages_are_taken_in_all_their_forms(client: TestClient, found: Served) -> None:
    messages = [
        {"role": "developer", "content": "be brief", "name": "somebody"},
        {"role": "user", "content": [part("a "), part("b")]},
        {"role": "assistant", "content": "c", "tool_calls": None},
        {"role": "user", "content": ""},
    ]  # fmt: skip
    body = {"model": "pool", "messages": messages, "user": "u", "metadata": {}, "store": False}
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    (request,) = asked(found)
    assert [(turn.role, turn.content) for turn in request.prompt] == [
        ("system", "be brief"), ("user", "a b"), ("assistant", "c"), ("user", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "x", "tool_call_id": "1"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]},
    ],
)
def test_what_is_no_text_is_refused(message: Json, client: TestClient) -> None:
    body = {"model": "pool", "messages": [message]}
    response = client.post("/v1/chat/completions", json=body)
    assert error_of(response)["code"] == "unsupported_parameter"


def test_a_full_queue_says_when_to_come_again(chat: Ask, found: Served) -> None:
    engine = found.engine
    assert isinstance(engine, DoubleEngine)
    engine.refuse = QueueFullError("64 requests wait, as many as may", 2.3)
    response = chat(stream=True)
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert error_of(response)["type"] == "rate_limit_error"
    engine.refuse = UnavailableError(f"reading {doubles.SECRET} failed")
    response = chat()
    assert response.status_code == 503
    assert error_of(response)["code"] == "unavailable"
    assert doubles.SECRET not in response.text


def test_an_answer_that_goes_wrong_says_nothing_of_the_insides(chat: Ask) -> None:
    response = chat(doubles.BROKEN)
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"
    assert doubles.SECRET not in response.text


def test_a_stream_that_goes_wrong_says_so_and_does_not_end_as_if_it_were_whole(chat: Ask) -> None:
    text = chat(doubles.BROKEN, stream=True).text
    last = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "internal_error"
    assert "[DONE]" not in text
    assert doubles.SECRET not in text


def test_an_answer_that_takes_too_long_is_given_up(found: Served) -> None:
    engine = found.engine
    assert isinstance(engine, DoubleEngine)
    engine.pause = 0.02
    app = create_app(found, settings(limits={"seconds": 0.1}))
    body = {"model": "base", "prompt": doubles.ENDLESS, "max_tokens": 1000}
    response = TestClient(app, base_url="http://localhost").post("/v1/completions", json=body)
    assert response.status_code == 504
    assert error_of(response)["code"] == "deadline_exceeded"
    assert response.headers["x-should-retry"] == "false"


def test_if_one_choice_finds_no_place_the_others_are_taken_back(found: Served, chat: Ask) -> None:
    engine = found.engine
    assert isinstance(engine, DoubleEngine)
    engine.pause, engine.rows, engine.queue = 0.05, 1, 2
    assert chat(doubles.ENDLESS, n=8).status_code == 429
    eventually(lambda: engine.state().running + engine.state().waiting == 0)
    assert {reason for _, reason in engine.ended} == {"cancelled"}
