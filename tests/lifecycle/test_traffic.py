"""Laws of unlabelled mixed rows: sorted by what the pool knows, learned kind by kind, none lost."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.errors import ConfigError, DataError, LearningInterruptedError
from dylora_moe.lifecycle import mixed as learning
from dylora_moe.lifecycle import traffic as sorting
from dylora_moe.lifecycle.gathering import TRAFFIC
from dylora_moe.lifecycle.learner import Learner
from dylora_moe.lifecycle.recipe import TrafficRules
from dylora_moe.lifecycle.results import LearnResult
from dylora_moe.lifecycle.traffic import Enough, Sorted, sort_traffic
from dylora_moe.records import Arrival, Example, pair
from tests.pools import DIGITS, LETTERS, SIGNS, Notes, fingerprint, rows, settings

RULES = TrafficRules(share=0.1, alike=0.3, least=24)
SETTINGS = settings(
    novelty={"strange_share": 0.1, "alike": 0.3, "min_cluster": 24, "badly": 0.2},
    generate_scores=0,
)
LETTER, DIGIT, SIGN = rows(LETTERS, 40, 21), rows(DIGITS, 40, 22), rows(SIGNS, 40, 23)


def shuffled(*kinds: Sequence[Example], seed: int = 0) -> tuple[Example, ...]:
    found = [row for kind in kinds for row in kind]
    random.Random(seed).shuffle(found)
    return tuple(found)


def feed(pool: Pool, examples: Sequence[Example], **options: Any) -> list[LearnResult]:
    options.setdefault("settings", SETTINGS)
    arrival = Arrival("traffic", tuple(examples))
    return pool.learn_arrivals([arrival], mixed=True, **options)


def kinds_of(found: Sorted) -> list[Counter[str]]:
    """Of each cluster, how many rows of each alphabet it has."""
    return [Counter(kind_of(row) for row in cluster) for cluster in found.clusters]


def kind_of(row: Example) -> str:
    return next(name for name in (LETTERS, DIGITS, SIGNS) if row.prompt[0] in name)


def waiting(pool: Pool) -> dict[str, int]:
    return {name: len(rows) for name, rows in pool._storage.examples.waiting()}


def test_to_an_empty_pool_all_is_strange_and_each_kind_is_a_cluster(empty: Pool) -> None:
    found = sort_traffic(empty.live, shuffled(LETTER, DIGIT, SIGN), RULES)
    assert found.strange == 120
    assert not found.claimed
    kinds = kinds_of(found)
    assert sorted(max(kind, key=kind.__getitem__) for kind in kinds) == sorted(
        [LETTERS, DIGITS, SIGNS]
    )
    assert all(max(kind.values()) >= 0.95 * kind.total() for kind in kinds)


def test_every_row_is_sorted_once(taught: Pool) -> None:
    given = shuffled(LETTER, DIGIT[:5], SIGN)
    found = sort_traffic(taught.live, given, RULES)
    parts = [*found.clusters, *(part for _, part in found.claimed), found.waiting]
    assert Counter(row.key for part in parts for row in part) == Counter(row.key for row in given)


def test_rows_of_known_skills_are_claimed_and_a_new_kind_is_a_cluster(taught: Pool) -> None:
    found = sort_traffic(taught.live, shuffled(LETTER, DIGIT, SIGN), RULES)
    claimed = {
        taught.live.record(skill).name: {kind_of(row) for row in part}
        for skill, part in found.claimed
    }
    assert claimed == {"letters": {LETTERS}, "digits": {DIGITS}}
    (kind,) = kinds_of(found)
    assert kind[SIGNS] >= 0.95 * kind.total()


def test_too_few_rows_of_a_kind_wait_known_or_not(taught: Pool) -> None:
    found = sort_traffic(
        taught.live, shuffled(LETTER[:10], SIGN[:10]), RULES, enough=Enough(24, 12)
    )
    assert not found.claimed
    assert not found.clusters
    assert len(found.waiting) == 20


def test_more_of_a_skill_takes_fewer_rows_than_what_is_to_be_told_apart(taught: Pool) -> None:
    few = sort_traffic(taught.live, LETTER[:14], RULES, enough=Enough(24, 12))
    (claim,) = few.claimed
    assert (taught.live.record(claim[0]).name, len(claim[1])) == ("letters", 14)
    assert not sort_traffic(taught.live, LETTER[:14], RULES, enough=Enough(24, 15)).claimed


def test_what_a_skill_has_besides_a_cluster_of_its_own_waits() -> None:
    ours = {("skill", 0): LETTER[:24], ("skill", 1): LETTER[24:40], ("other", 2): DIGIT[:16]}
    found = sorting._claims(ours, Enough(24, 12))
    assert [(skill, len(part)) for skill, part in found] == [("skill", 24), ("other", 16)]


def test_few_rows_that_no_verdict_is_sure_of_are_sorted_anew_with_the_next(
    taught: Pool,
) -> None:
    strict = settings(
        novelty={"badly": 1e-6, "min_cluster": 24, "strange_share": 0.1}, generate_scores=0
    )
    results = feed(taught, LETTER[:14], settings=strict)
    assert {result.action for result in results} == {"waiting"}
    assert waiting(taught) == {TRAFFIC: 14}
    learned = feed(taught, LETTER[14:], settings=SETTINGS)
    assert "letters" in {result.skill for result in learned}
    assert waiting(taught).get(TRAFFIC, 0) < 14
    assert set(waiting(taught)) <= {TRAFFIC}


def test_a_dozen_rows_of_a_known_skill_are_learned_and_do_not_wait(taught: Pool) -> None:
    # The little expert here is far from what it could be.
    lenient = settings(novelty={"badly": 0.9, "min_cluster": 24}, generate_scores=0)
    (result,) = feed(taught, LETTER[:14], settings=lenient)
    assert (result.verdict.name, result.skill) == ("known", "letters")
    assert result.action in ("new version", "statistics")
    assert not waiting(taught)


def test_no_rows_are_sorted_too(taught: Pool) -> None:
    found = sort_traffic(taught.live, (), RULES)
    assert found == Sorted((), (), (), 0, 0)


def test_mixed_rows_become_an_expert_for_each_kind(empty: Pool) -> None:
    results = feed(empty, shuffled(LETTER, DIGIT, SIGN))
    made = [result for result in results if result.action == "created"]
    assert [result.arrival for result in made] == ["traffic-1", "traffic-2", "traffic-3"]
    assert len(empty.experts()) == 3
    (event,) = empty.registry.events("sorted")
    assert event.numbers["rows"] == 120
    assert sum(event.numbers["clusters"]) + event.numbers["waiting"] == 120


def test_rows_of_known_skills_go_through_the_verdict_under_their_names(taught: Pool) -> None:
    results = feed(taught, shuffled(LETTER, SIGN))
    told = {result.arrival: result.verdict.name for result in results}
    assert told["letters"] == "known"
    assert told["traffic-1"] == "novel"
    assert len(taught.experts()) == 3


def test_what_is_too_little_waits_and_is_sorted_with_the_next_traffic(taught: Pool) -> None:
    (result,) = feed(taught, SIGN[:14])
    assert result.action == "waiting"
    assert waiting(taught) == {TRAFFIC: 14}
    results = feed(taught, SIGN[14:])
    assert [r.action for r in results if r.arrival == "traffic-1"] == ["created"]
    learned = {key for skill in taught.revision.skills for key in keys(taught, skill.name)}
    left = {row.key for _, part in taught._storage.examples.waiting() for row in part}
    assert {row.key for row in SIGN} == (learned | left) & {row.key for row in SIGN}
    assert not learned & left


def keys(pool: Pool, skill: str) -> frozenset[str]:
    record = pool.live.record(skill)
    return pool.live.keys_of(record.examples + record.validation)


def test_the_same_traffic_again_does_nothing(empty: Pool) -> None:
    given = shuffled(LETTER, DIGIT)
    feed(empty, given)
    before = fingerprint(empty)
    (result,) = feed(empty, given)
    assert result.action in ("unchanged", "waiting")
    assert fingerprint(empty).revision == before.revision


def test_waiting_traffic_joins_no_arrival(taught: Pool) -> None:
    feed(taught, SIGN[:14])
    (plan,) = taught.plan_arrivals([Arrival("signs", SIGN[14:])], settings=settings())
    assert plan.waiting == 0


def test_rows_whose_kind_gets_no_expert_still_wait(taught: Pool) -> None:
    feed(taught, SIGN[:14])
    frozen = settings(
        novelty={"strange_share": 0.1, "alike": 0.3, "min_cluster": 24, "growth": False},
        generate_scores=0,
    )
    feed(taught, SIGN[14:], settings=frozen)
    assert sum(waiting(taught).values()) == 40
    assert len(taught.experts()) == 2


def test_broken_off_nothing_that_waited_is_lost(taught: Pool) -> None:
    feed(taught, SIGN[:14])

    def stop(step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(LearningInterruptedError):
        feed(taught, SIGN[14:], watch=Notes(at_step=stop))
    assert waiting(taught)[TRAFFIC] == 14
    results = feed(taught, SIGN[14:])
    assert "created" in [result.action for result in results]


def test_what_waited_and_is_not_looked_at_again_goes_on_waiting(
    taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(taught, SIGN[:14])
    monkeypatch.setattr(learning, "PIECE", 6)
    feed(taught, SIGN[14:17])
    assert waiting(taught)[TRAFFIC] == 17


def test_what_waited_and_is_too_long_by_now_goes_on_waiting(taught: Pool) -> None:
    wordy = tuple(pair("+-*/" * 12 + str(number), "+++") for number in range(14))
    feed(taught, wordy)
    short = settings(
        novelty={"strange_share": 0.1, "alike": 0.3, "min_cluster": 24},
        generate_scores=0, max_length=32, drop_long=True,
    )  # fmt: skip
    feed(taught, SIGN[:4], settings=short)
    assert waiting(taught)[TRAFFIC] == 18


def test_what_waited_of_a_kind_that_is_rejected_goes_on_waiting(
    taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(taught, SIGN[:14])
    refused = replace(feed(taught, SIGN[:14])[0], action="rejected")
    monkeypatch.setattr(Learner, "add_new_skill", lambda *_: refused)
    feed(taught, SIGN[14:])
    left = {row.key for _, part in taught._storage.examples.waiting() for row in part}
    assert {row.key for row in SIGN[:14]} <= left


def test_more_than_a_piece_is_sorted_by_what_came_before(
    empty: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "PIECE", 40)
    results = feed(empty, (*LETTER, *rows(LETTERS, 40, 24)))
    first, second = empty.registry.events("sorted")
    assert len(first.numbers["clusters"]) == 1
    assert (first.numbers["strange"], first.numbers["known"]) == (40, [])
    assert second.numbers["rows"] == 40 + first.numbers["waiting"]
    assert {name for name, _ in second.numbers["known"]} == {"traffic-1"}
    assert results[0].action == "created"
    assert len(empty.experts()) == 1


def test_a_plan_names_every_kind_and_changes_nothing(taught: Pool) -> None:
    before = fingerprint(taught)
    given = Arrival("traffic", shuffled(LETTER, SIGN, DIGIT[:3]))
    plans = taught.plan_arrivals([given], mixed=True, settings=SETTINGS)
    told = {plan.arrival: (plan.rows, plan.verdict.name) for plan in plans}
    assert len(told) == len(plans), "a kind of rows is learned once"
    assert told["traffic-1"][1] == "novel"
    assert told["letters"][1] == "known"
    assert sum(rows for rows, _ in told.values()) == 83
    assert fingerprint(taught) == before
    assert not taught._storage.examples.waiting()


def test_nothing_can_be_overruled_for_rows_of_several_skills(empty: Pool) -> None:
    for overruled in ({"into": "letters"}, {"as_new": True}, {"name": "signs"}):
        with pytest.raises(ConfigError, match="nothing can be overruled"):
            feed(empty, SIGN, **overruled)


def test_rows_to_validate_on_cannot_be_named(empty: Pool) -> None:
    with pytest.raises(DataError, match="nobody knows whose they are"):
        empty.learn_arrivals([Arrival("traffic", SIGN, LETTER)], mixed=True, settings=SETTINGS)
