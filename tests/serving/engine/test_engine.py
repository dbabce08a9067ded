"""Answers of a running batch are those that each prompt gets alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.errors import (
    ConfigError,
    DataError,
    PoolError,
    QueueFullError,
    UnavailableError,
)
from dylora_moe.lifecycle.answering import route
from dylora_moe.records import Turn
from dylora_moe.serving.engine.engine import BatchingEngine
from dylora_moe.serving.engine.limits import Limits
from dylora_moe.serving.engine.requests import Choice, Request
from dylora_moe.serving.guide import Guide
from dylora_moe.text.template import encode_prompt
from tests.pools import LETTERS, learn, rows, settings
from tests.serving.engine.conftest import Heard, Turned

PROMPTS = ("abcdef", "1234", "fedcbafedcbafedc", "66", "Who are you?", "aabbccddee", "111222333")

Make = Callable[..., Turned]


@pytest.fixture(params=["sequence", "token"])
def folder(request: pytest.FixtureRequest, taught: Pool) -> Path:
    """A pool that routes by prompt, and one that routes by token."""
    if request.param == "token":
        learn(
            taught,
            "letters",
            rows(LETTERS, 40, 9),
            into="letters",
            settings=settings(router={"granularity": "token"}),
        )
        assert taught.live.router.granularity == "token"
    return taught.path


def test_answers_in_a_batch_are_those_of_each_prompt_alone(
    folder: Path, taught: Pool, turned: Make
) -> None:
    engine = turned(folder)
    choices = (None, "letters", "digits", "base")
    asked = []
    for number, prompt in enumerate(PROMPTS * 2):
        choice = choices[number % len(choices)]
        heard, _ = engine.ask(Request(prompt, Choice(choice), max_tokens=5 + 3 * (number % 4)))
        asked.append((prompt, choice, 5 + 3 * (number % 4), heard))
        engine.turn(number % 3)
    engine.run()
    experts = set()
    for prompt, choice, count, heard in asked:
        expected = taught.generate(prompt, expert=choice, max_new_tokens=count)
        assert heard.text == expected.text, (prompt, choice)
        found = heard.end.provenance
        assert found is not None
        assert (found.expert, found.version) == (expected.expert, expected.version)
        assert found.routed is (choice is None)
        weights = {f"{name}@": weight for name, weight in expected.weights.items()}
        assert {k.rstrip("0123456789"): v for k, v in found.weights.items()} == pytest.approx(
            weights, abs=1e-4
        )
        if choice is None:
            assert found.none == pytest.approx(expected.none, abs=1e-4)
        experts.add(found.expert)
    assert experts == {"letters", "digits", "base"}, "the test needs all of them"


@pytest.mark.parametrize("folder", ["sequence"], indirect=True)
def test_an_answer_is_given_again_by_the_weights_that_it_was_given_by(
    folder: Path, turned: Make
) -> None:
    engine = turned(folder)
    routed = engine.answers(*(Request(prompt, max_tokens=6, top_logprobs=0) for prompt in PROMPTS))
    mixed = []
    for prompt, heard in zip(PROMPTS, routed, strict=True):
        found = heard.end.provenance
        assert found is not None
        if not found.weights:
            continue
        mixed.append(len(found.weights) > 1)
        weights = {(name, int(v)): w for key, w in found.weights.items()
                   for name, _, v in [key.rpartition("@")]}  # fmt: skip
        (again,) = engine.answers(
            Request(prompt, Choice(weights=weights), max_tokens=6, top_logprobs=0)
        )
        assert again.end.provenance is not None
        assert again.end.provenance.weights == found.weights
        assert not again.end.provenance.routed
        assert [one.chosen.token for one in again.logprobs] == [
            one.chosen.token for one in heard.logprobs
        ]
        assert [one.chosen.logprob for one in again.logprobs] == pytest.approx(
            [one.chosen.logprob for one in heard.logprobs], abs=1e-4
        )
    assert any(mixed), "the test needs a mixture"
    with pytest.raises(PoolError, match="has no version 7"):
        engine.submit(Request("x", Choice(weights={("letters", 7): 1.0})), Heard())
    for wrong in ({}, {("letters", 1): 0.0}, {("letters", 1): 0.8, ("digits", 1): 0.4}):
        with pytest.raises(ConfigError, match="take the place of the router"):
            Choice(weights=wrong)


def test_turns_and_token_ids_are_prompts_too(taught: Pool, turned: Make) -> None:
    engine = turned(taught.path)
    turns = (Turn("user", "abc"), Turn("assistant", "aaa"), Turn("user", "fed"))
    ids = taught.live.base.tokenizer("abc\n")["input_ids"]
    by_turns, by_ids = engine.answers(Request(turns, max_tokens=6), Request(ids, max_tokens=6))
    assert by_turns.text == taught.chat(turns, max_new_tokens=6).text
    assert by_ids.text == taught.generate("abc", max_new_tokens=6).text


def test_an_answer_ends_by_its_stop_token_by_a_text_or_by_its_length(
    taught: Pool, turned: Make
) -> None:
    engine = turned(taught.path)
    base = Choice("base")
    text = taught.generate("Who are you?", expert="base", max_new_tokens=40).text
    place = next(i for i in range(2, 40) if text[i] not in text[:i])
    stop = engine.loop.live.base.tokenizer
    by_text, by_length = engine.answers(
        Request("Who are you?", base, max_tokens=40, stop=(text[place - 1 : place + 1], "\t")),
        Request("Who are you?", base, max_tokens=2),
    )
    assert (by_text.text, by_text.end.reason) == (text[: place - 1], "stop")
    assert (by_length.text, by_length.end.reason) == (text[:2], "length")
    # A random base never stops by itself within the test.
    stop.eos_token = text[place]
    (by_token,) = engine.answers(Request("Who are you?", base, max_tokens=40, top_logprobs=0))
    assert (by_token.text, by_token.end.reason) == (text[:place], "stop")
    assert by_token.end.tokens == place + 1
    assert len(by_token.logprobs) == place, "the stop token is no part of the answer"


def test_a_seed_draws_the_same_whatever_else_is_in_the_batch(taught: Pool, turned: Make) -> None:
    engine = turned(taught.path)
    drawn = Request("1234", max_tokens=12, temperature=1.0, seed=5)
    (alone,) = engine.answers(drawn)
    among = engine.answers(
        Request("abcdef", max_tokens=3, temperature=1.0, seed=1),
        drawn,
        Request("1234", max_tokens=12, temperature=1.0, seed=6),
    )
    assert among[1].text == alone.text != among[2].text
    assert alone.end.provenance is not None
    assert alone.end.provenance.seed == 5


def test_logprobs_are_those_of_the_model_and_greedy_takes_the_largest(
    taught: Pool, turned: Make
) -> None:
    (heard,) = turned(taught.path).answers(Request("abcdef", max_tokens=4, top_logprobs=3))
    assert "".join(one.chosen.text for one in heard.logprobs) == heard.text
    for one in heard.logprobs:
        assert one.top[0] == one.chosen
        assert [each.logprob for each in one.top] == sorted(
            (each.logprob for each in one.top), reverse=True
        )
        assert len(one.top) == 3
        assert one.chosen.logprob < 0


def test_who_is_given_up_leaves_within_a_turn_and_the_others_go_on(
    taught: Pool, turned: Make
) -> None:
    engine = turned(taught.path)
    gone, ticket = engine.ask(Request("abcdef", Choice("base"), max_tokens=50))
    kept, _ = engine.ask(Request("1234", Choice("base"), max_tokens=9))
    late, _ = engine.ask(Request("66", Choice("base"), max_tokens=50, seconds=0.0))
    engine.turn(2)
    assert late.end.reason == "deadline"
    ticket.cancel()
    engine.turn()
    assert gone.end.reason == "cancelled"
    assert gone.end.tokens <= 3
    engine.run()
    assert kept.text == taught.generate("1234", expert="base", max_new_tokens=9).text


def test_rows_wait_for_a_place_and_none_is_lost(taught: Pool, turned: Make) -> None:
    engine = turned(taught.path, limits=Limits(rows=2, tokens=64))
    heard = [engine.ask(Request(p, max_tokens=8))[0] for p in PROMPTS]
    most = 0
    while engine.loop.turn():
        most = max(most, engine.loop.running)
        assert engine.loop.cached_tokens <= 64
    assert most == 2
    for prompt, one in zip(PROMPTS, heard, strict=True):
        assert one.text == taught.generate(prompt, max_new_tokens=8).text


def test_what_cannot_be_answered_is_refused_at_once(taught: Pool, turned: Make) -> None:
    engine = turned(taught.path, limits=Limits(waiting=1, tokens=200))
    for request, error, words in (
        (Request("abc", Choice("nobody")), PoolError, "no expert 'nobody'"),
        (Request("abc", Choice("letters", 7)), PoolError, "no version 7; there are: 1"),
        (Request(""), DataError, "empty"),
        (Request([5, 10**6]), DataError, "vocabulary"),
        (Request("a" * 300), DataError, "no room"),
        (Request("abc", max_tokens=220), DataError, "server takes 200"),
    ):
        with pytest.raises(error, match=words):
            engine.submit(request, Heard())
    engine.submit(Request("abc"), Heard())
    with pytest.raises(QueueFullError, match="come again") as full:
        engine.submit(Request("abc"), Heard())
    assert full.value.seconds >= 1
    for wrong in ({"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"stop": ("",)}):
        with pytest.raises(ConfigError):
            Request("abc", **wrong)


def test_work_that_needs_the_model_is_done_between_steps(taught: Pool, turned: Make) -> None:
    engine = turned(taught.path)
    heard, _ = engine.ask(Request("abcdef", Choice("base"), max_tokens=6))
    engine.turn(2)
    asked, failing = engine.call(lambda live: live.versions), engine.call(lambda live: 1 / 0)
    before = len(heard.pieces)
    engine.turn()
    assert (asked.done(), failing.done()) == (True, False)
    assert len(heard.pieces) == before + 1, "answers go on between two of them"
    engine.turn()
    assert asked.result(0) == {"expert_1": 1, "expert_2": 1}
    with pytest.raises(ZeroDivisionError):
        failing.result(0)
    engine.run()
    assert heard.text == taught.generate("abcdef", expert="base", max_new_tokens=6).text


def test_a_prompt_that_is_only_routed_is_encoded_by_whoever_asks_and_bounded(
    taught: Pool, turned: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, encoding = turned(taught.path, limits=Limits(tokens=100)), set()

    def spied(*given: Any) -> list[int]:
        encoding.add(threading.current_thread())
        return encode_prompt(*given)

    for module in ("serving.engine.prompts", "lifecycle.answering"):
        monkeypatch.setattr(f"dylora_moe.{module}.encode_prompt", spied)
    guide = Guide(engine)
    with ThreadPoolExecutor(1) as asking:
        routed, longer = (asking.submit(guide.route, text) for text in ("abcdef", "a" * 120))
        while not longer.done():
            engine.turn()
    assert threading.current_thread() not in encoding
    assert len(encoding) == 1
    given = {one.expert: one.weight for one in routed.result().weights}
    expected = route(taught.live, ["abcdef"])
    assert given["letters"] == pytest.approx(float(expected.weights[0, 0]), abs=2e-3)
    with pytest.raises(DataError, match="the server takes 100"):
        longer.result()


def test_a_damaged_expert_fails_its_own_requests_alone(taught: Pool, turned: Make) -> None:
    version = taught.revision.expert("digits")
    assert version is not None
    expected = taught.generate("abcdef", expert="letters", max_new_tokens=6).text
    file = taught.path / version.files[0].path
    engine = turned(taught.path)
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    good, bad = engine.answers(
        Request("abcdef", Choice("letters"), max_tokens=6),
        Request("1234", Choice("digits"), max_tokens=6),
    )
    assert good.text == expected
    assert (bad.end.reason, bad.pieces) == ("error", [])
    assert [note.kind for note in engine.notes].count("error") == 1
    assert engine.state().ready


def test_an_engine_in_its_thread_answers_drains_and_then_takes_nothing(taught: Pool) -> None:
    engine = BatchingEngine.open(taught.path, device="cpu", dtype="fp32")
    engine.wait_until_ready(60)
    heard = [Heard() for _ in PROMPTS]
    threads = [
        threading.Thread(target=engine.submit, args=(Request(p, max_tokens=30), h))
        for p, h in zip(PROMPTS, heard, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.drain(60)
    for prompt, one in zip(PROMPTS, heard, strict=True):
        assert one.text == taught.generate(prompt, max_new_tokens=30).text
    with pytest.raises(UnavailableError, match="stopped"):
        engine.submit(Request("abc"), Heard())
    assert not engine.state().ready


def test_what_is_not_done_in_time_is_told_so(taught: Pool) -> None:
    engine = BatchingEngine.open(
        taught.path, device="cpu", dtype="fp32", limits=Limits(rows=1, tokens=256)
    )
    engine.wait_until_ready(60)
    heard = [Heard(), Heard()]
    for one in heard:
        engine.submit(Request("abcdef", Choice("base"), max_tokens=200), one)
    while not heard[0].pieces:
        time.sleep(0.001)
    assert not engine.drain(0.0)
    assert {one.end.reason for one in heard} == {"error"}


def test_a_pool_that_cannot_be_loaded_is_said_to_be_broken(
    taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "dylora_moe.serving.engine.engine.Loop", lambda *_: (_ for _ in ()).throw(OSError("disk"))
    )
    told: list[str] = []
    engine = BatchingEngine.open(taught.path, on_note=lambda note: told.append(note.message))
    with pytest.raises(UnavailableError, match="broke down"):
        engine.wait_until_ready(60)
    with pytest.raises(UnavailableError, match="broke down"):
        engine.submit(Request("abc"), Heard())
    assert any("disk" in message for message in told)
