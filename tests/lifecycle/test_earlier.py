"""What an average over arrivals goes on from."""

from __future__ import annotations

import pytest

from dylora_moe.lifecycle.earlier import last_separability
from dylora_moe.records import Event

TEST = "cosine-maximum-smoothed"


def arrival(name: str, value: float | None, detector: str = TEST) -> Event:
    measured = None if value is None else {"value": value, "low": 0.0, "high": 1.0}
    return Event("arrival", {"arrival": name, "detector": detector, "separability": measured})


def promoted(action: str, name: str | None = None) -> Event:
    return Event("promoted", {"action": action, **({"arrival": name} if name else {})})


def waiting(name: str) -> Event:
    return Event("waiting", {"arrival": name})


def test_the_last_settled_arrival_counts_however_it_was_settled() -> None:
    events = [arrival("a", 0.1), promoted("new version", "a")]
    assert last_separability(events, TEST) == 0.1
    events += [arrival("b", 0.2), waiting("b")]
    assert last_separability(events, TEST) == 0.2
    events += [arrival("c", 0.3), Event("rejected", {"arrival": "c"})]
    assert last_separability(events, TEST) == 0.3
    assert last_separability([], TEST) is None


def test_what_was_interrupted_is_not_measured_against_itself() -> None:
    events = [arrival("a", 0.1), promoted("covered", "a"), arrival("b", 0.9)]
    assert last_separability(events, TEST) == 0.1
    events += [Event("error", {"arrival": "b"}), arrival("b", 0.5), promoted("statistics", "b")]
    assert last_separability(events, TEST) == 0.5


def test_another_detectors_numbers_and_missing_ones_are_passed_over() -> None:
    events = [
        arrival("a", 0.1), waiting("a"),
        arrival("b", 0.7, "cosine-maximum"), waiting("b"),
        arrival("c", None), waiting("c"),
    ]  # fmt: skip
    assert last_separability(events, TEST) == 0.1
    assert last_separability(events, "cosine-maximum") == 0.7


@pytest.mark.parametrize("action", ["created", "imported", "removed", "rolled back"])
def test_it_starts_anew_when_the_experts_are_others(action: str) -> None:
    before = [arrival("a", 0.1), waiting("a")]
    own = action == "created"
    events = [
        *before,
        *([arrival("b", 0.9)] if own else []),
        promoted(action, "b" if own else None),
    ]
    assert last_separability(events, TEST) is None
    events += [promoted("renamed"), arrival("c", 0.4), promoted("covered", "c")]
    assert last_separability(events, TEST) == 0.4


def test_an_arrival_is_settled_once() -> None:
    events = [arrival("a", 0.1), promoted("created", "a"), promoted("covered", "a")]
    assert last_separability(events, TEST) is None
