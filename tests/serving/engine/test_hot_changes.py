"""A pool that another process learns into, under an engine that answers all the while."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.errors import PoolError
from dylora_moe.records import Interval
from dylora_moe.serving.engine.canary import CanaryRule
from dylora_moe.serving.engine.requests import Choice, Request
from tests.pools import LETTERS, SIGNS, learn, rows, settings, shouted
from tests.serving.engine.conftest import Heard, Turned

Make = Callable[..., Turned]
LONG = 60


@pytest.fixture
def better(taught: Pool) -> Callable[[], None]:
    """Teaches `letters` other answers: version 2."""

    def teach() -> None:
        learned = learn(
            taught, "letters", rows(LETTERS, 64, 11, shouted), into="letters",
            settings=settings(more_data={"epochs": 4, "learning_rate": 3e-2}),
        )  # fmt: skip
        assert learned.action == "new version", learned.message

    return teach


def test_a_new_expert_answers_at_once_and_those_under_way_are_not_touched(
    taught: Pool, turned: Make
) -> None:
    engine = turned(taught.path)
    before = {p: taught.generate(p, max_new_tokens=LONG).text for p in ("abcdef", "1234")}
    under_way = {p: engine.ask(Request(p, max_tokens=LONG))[0] for p in before}
    engine.turn(3)
    learn(taught, "signs", rows(SIGNS, 64, 5), as_new=True)
    pinned, _ = engine.ask(Request("+-*/", Choice("base"), max_tokens=3))
    engine.turn()
    new, _ = engine.ask(Request("+-*/=", Choice("signs"), max_tokens=6))
    engine.run()
    assert new.text == taught.generate("+-*/=", expert="signs", max_new_tokens=6).text
    assert {p: heard.text for p, heard in under_way.items()} == before
    assert pinned.end.reason == "length"
    (note,) = [note for note in engine.notes if note.kind == "revision"]
    assert note.numbers["new"] == ["signs"]


def test_a_request_ends_with_the_version_it_began_with(
    taught: Pool, turned: Make, better: Callable[[], None]
) -> None:
    engine = turned(taught.path)
    old = taught.generate("abcdef", expert="letters", max_new_tokens=LONG).text
    under_way = [
        engine.ask(Request("abcdef", Choice(name), max_tokens=LONG))[0]
        for name in (None, "letters")
    ]
    engine.turn(3)
    better()
    new = taught.generate("abcdef", expert="letters", max_new_tokens=LONG).text
    assert new != old, "the test needs versions that answer otherwise"
    engine.turn(2)
    later, _ = engine.ask(Request("abcdef", Choice("letters"), max_tokens=LONG))
    by_number, _ = engine.ask(Request("abcdef", Choice("letters", 1), max_tokens=LONG))
    engine.run()
    assert [heard.text for heard in under_way] == [old, old]
    assert [h.end.provenance.version for h in under_way if h.end.provenance] == [1, 1]
    assert (later.text, by_number.text) == (new, old)
    with pytest.raises(PoolError, match="there are: 1, 2"):
        engine.ask(Request("abcdef", Choice("letters", 3)))


def test_a_version_on_trial_gets_a_share_and_passes(
    taught: Pool, turned: Make, better: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    _weighs(monkeypatch, Interval(0.0, -0.1, 0.1))
    engine = turned(taught.path, canary=CanaryRule(share=0.25, answers=3))
    better()
    engine.turn()
    asked = [engine.ask(Request("abcdef", Choice("letters"), max_tokens=2))[0] for _ in range(8)]
    engine.run()
    found = [heard.end.provenance for heard in asked]
    assert [one.version for one in found if one].count(2) == 2
    assert [one.canary for one in found if one].count(True) == 2
    engine.answers(*[Request("abcdef", Choice("letters"), max_tokens=2)] * 4)
    assert [note.kind for note in engine.notes[-1:]] == ["canary promoted"]
    (last,) = engine.answers(Request("abcdef", Choice("letters"), max_tokens=2))
    assert last.end.provenance is not None
    assert (last.end.provenance.version, last.end.provenance.canary) == (2, False)


def test_a_version_that_is_worse_is_taken_back_for_all_who_ask_from_then_on(
    taught: Pool, turned: Make, better: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    _weighs(monkeypatch, Interval(0.5, 0.3, 0.7))
    engine = turned(taught.path, canary=CanaryRule(share=0.9))
    better()
    engine.run()
    (note,) = [note for note in engine.notes if note.kind == "canary rolled back"]
    expected = {"expert": "letters", "expert_id": "expert_1", "version": 2, "back_to": 1}
    assert note.numbers == expected
    heard = engine.answers(*[Request("abcdef", Choice("letters"), max_tokens=4)] * 6)
    assert {h.end.provenance.version for h in heard if h.end.provenance} == {1}
    routed, _ = engine.ask(Request("abcdef", max_tokens=4))
    engine.run()
    assert routed.text == heard[0].text


def test_only_what_a_row_did_itself_speaks_against_its_version(
    taught: Pool, turned: Make, better: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    _weighs(monkeypatch, Interval(0.0, -0.1, 0.1))
    _never_stops(monkeypatch)
    engine = turned(taught.path, canary=CanaryRule(share=0.99, errors=1))
    better()
    engine.turn()
    request = Request("abcdef", Choice("letters"), max_tokens=LONG)
    late, _ = engine.ask(replace(request, seconds=0.2))
    engine.turn(2)
    time.sleep(0.25)
    engine.turn()
    step = engine.loop._batch.step

    def fails() -> None:
        raise RuntimeError("no memory")

    def asked(count: int) -> list[Heard]:
        """Rows that are in the batch when a step fails."""
        monkeypatch.setattr(engine.loop._batch, "step", step)
        heard = [engine.ask(request)[0] for _ in range(count)]
        engine.turn(2)
        monkeypatch.setattr(engine.loop._batch, "step", fails)
        engine.turn()
        return heard

    together = asked(2)
    ended = [one.end for one in (late, *together)]
    assert [end.reason for end in ended] == ["deadline", "error", "error"]
    assert {end.provenance.version for end in ended if end.provenance} == {2}
    assert "canary rolled back" not in [note.kind for note in engine.notes]
    asked(1)
    assert engine.notes[-1].kind == "canary rolled back"


def test_what_is_broken_off_at_the_end_speaks_against_nobody(
    taught: Pool, turned: Make, better: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    _never_stops(monkeypatch)
    engine = turned(taught.path, canary=CanaryRule(share=0.99, errors=1))
    better()
    heard, _ = engine.ask(Request("abcdef", Choice("letters"), max_tokens=LONG))
    engine.turn(2)
    engine._waiting.close("the server is being stopped")
    weighed: list[object] = []
    monkeypatch.setattr(engine.loop._trials, "work", lambda: weighed.append(1))
    engine.turn()
    engine.loop.give_up("the server is being stopped")
    assert heard.end.reason == "error"
    assert heard.end.provenance is not None
    assert heard.end.provenance.canary
    kinds = [note.kind for note in engine.notes]
    assert ("canary" in kinds, "canary rolled back" in kinds) == (True, False)
    assert not weighed, "a server that is being stopped does not wait for that"


def test_a_revision_that_is_damaged_leaves_the_engine_with_the_one_it_has(
    taught: Pool, turned: Make
) -> None:
    engine = turned(taught.path)
    learn(taught, "signs", rows(SIGNS, 64, 5), as_new=True)
    router = taught.revision.router
    assert router is not None
    (taught.path / router.path).write_bytes(b"nothing")
    (heard,) = engine.answers(Request("abcdef", Choice("letters"), max_tokens=3))
    assert heard.end.reason == "length"
    assert engine.state().revision == 2
    assert any("goes on with revision 2" in note.message for note in engine.notes)


def _weighs(monkeypatch: pytest.MonkeyPatch, rise: Interval | None) -> None:
    def weigh(*_: object) -> object:
        yield
        return rise

    monkeypatch.setattr("dylora_moe.serving.engine.trials.weigh_versions", weigh)


def _never_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers end by their length alone."""
    monkeypatch.setattr("dylora_moe.serving.engine.loop.stop_token_id", lambda _: -1)
