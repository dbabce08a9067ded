"""Which versions are tried, against which, and what becomes of those that cannot be weighed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import pytest

from dylora_moe.errors import ArtifactError
from dylora_moe.records import Interval
from dylora_moe.serving.engine.canary import CanaryRule
from dylora_moe.serving.engine.notes import Note
from dylora_moe.serving.engine.trials import Trials

RULE = CanaryRule(share=0.1, answers=2, errors=2)
NAME = "expert_1"


class Double:
    """A pool of one expert, and its versions; `trials` as they go."""

    def __init__(self) -> None:
        self.versions = {NAME: 1}
        self.rise: Interval | Exception | None = Interval(0.0, 0.0, 0.0)
        self.unreadable: set[int] = set()
        self.weighings = 0
        self.notes: list[Note] = []
        double = cast("Any", self)
        self.trials = Trials(double, double, RULE, self.notes.append)

    def alias(self, expert_id: str) -> str:
        return "letters"

    def adapter(self, ref: tuple[str, int]) -> str:
        if ref[1] in self.unreadable:
            raise ArtifactError(f"v{ref[1]} is missing")
        return f"{ref[0]}v{ref[1]}"

    def weigh(self, *_: object) -> Iterator[None]:
        self.weighings += 1
        yield
        if isinstance(self.rise, Exception):
            raise self.rise
        return self.rise  # type: ignore[return-value]

    def becomes(self, version: int, *, rise: Interval | Exception | None = None) -> None:
        """The pool has another version in service, which is weighed as far as that goes."""
        self.versions[NAME] = version
        self.rise = rise
        self.trials.moved()
        for _ in range(4):
            self.trials.work()

    def asked(self, count: int = 100) -> Counter[int]:
        """The versions that so many requests take."""
        return Counter(self.trials.taken()[NAME] for _ in range(count))

    @property
    def told(self) -> list[str]:
        return [note.kind for note in self.notes]


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Double:
    made = Double()
    monkeypatch.setattr("dylora_moe.serving.engine.trials.weigh_versions", made.weigh)
    return made


WORSE = Interval(0.5, 0.4, 0.6)


def test_after_a_failed_trial_the_next_version_is_held_against_the_last_that_passed(
    pool: Double,
) -> None:
    pool.becomes(2, rise=WORSE)
    assert pool.asked() == {1: 100}
    pool.becomes(3)
    assert pool.asked() == {1: 90, 3: 10}
    pool.becomes(4, rise=WORSE)
    (*_, note) = pool.notes
    assert (note.numbers["version"], note.numbers["back_to"]) == (4, 1)
    assert pool.asked() == {1: 100}


def test_a_version_that_was_never_weighed_out_is_nobody_s_measure(pool: Double) -> None:
    pool.becomes(2)
    pool.becomes(3)
    assert pool.asked() == {1: 90, 3: 10}


def test_one_that_passed_is_the_next_one_s_measure(pool: Double) -> None:
    pool.becomes(2)
    for _ in range(RULE.answers):
        pool.trials.count({(NAME, 2)}, True)
    assert pool.told == ["canary", "canary promoted"]
    assert pool.asked() == {2: 100}
    pool.becomes(3)
    assert pool.asked() == {2: 90, 3: 10}


def test_an_older_version_that_is_put_back_serves_at_once(pool: Double) -> None:
    pool.becomes(2)
    pool.becomes(1)
    assert pool.asked() == {1: 100}
    assert pool.told == ["canary"]
    pool.becomes(2)
    assert pool.asked() == {1: 90, 2: 10}


@pytest.mark.parametrize("wrong", [RuntimeError("CUDA"), ArtifactError("damaged"), KeyError(1)])
def test_a_version_that_cannot_be_weighed_fails_and_is_told_of_once(
    wrong: Exception, pool: Double
) -> None:
    pool.becomes(2, rise=wrong)
    for _ in range(3):
        assert not pool.trials.work()
        pool.trials.count({(NAME, 2)}, True)
    assert pool.weighings == 1
    assert pool.told == ["canary", "canary rolled back"]
    assert repr(wrong) in pool.notes[-1].message
    assert pool.asked() == {1: 100}


def test_a_version_whose_files_are_missing_fails_and_is_not_tried_again(pool: Double) -> None:
    pool.unreadable = {2}
    pool.becomes(2)
    assert pool.told == ["canary", "canary rolled back"]
    assert "v2 is missing" in pool.notes[-1].message
    assert not pool.trials.work()


def test_a_version_is_not_given_up_for_one_that_is_broken(pool: Double) -> None:
    pool.unreadable = {1}
    pool.becomes(2)
    assert pool.told == ["canary", "canary promoted"]
    assert "v1, which it was to be held against, is broken: v1 is missing" in pool.notes[-1].message


def test_a_skill_without_validation_rows_leaves_it_to_the_answers(pool: Double) -> None:
    pool.becomes(2, rise=None)
    assert pool.told == ["canary"]
    for _ in range(RULE.answers):
        pool.trials.count({(NAME, 2)}, True)
    assert pool.told == ["canary", "canary promoted"]
