"""Laws of the inbox's clusters: prompts of a kind together, named steadily, held against skills."""

from __future__ import annotations

import random

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.errors import PoolError
from dylora_moe.lifecycle import inbox
from dylora_moe.lifecycle.inbox import (
    InboxCluster,
    InboxRules,
    Known,
    cluster_inbox,
    find_cluster,
    inbox_features,
    newest,
    prompts_of,
)
from dylora_moe.records import InboxEntry, Turn
from tests.pools import DIGITS, LETTERS, SIGNS, rows

RULES = InboxRules(alike=0.3, needed=24)
UPPER = "UVWXYZ"


def entries(alphabet: str, count: int, seed: int = 31, start: int = 0) -> list[InboxEntry]:
    found = rows(alphabet, count, seed)
    return [
        InboxEntry((Turn("user", row.prompt),), 1 + i % 2, f"t{start + i:03d}", f"t{start + i:03d}")
        for i, row in enumerate(found)
    ]


def clustered(pool: Pool, given: list[InboxEntry]) -> tuple[InboxCluster, ...]:
    live = pool.live
    return cluster_inbox(Known.of(live), given, inbox_features(live, given), RULES)


def test_prompts_of_a_kind_are_a_cluster_the_largest_first(taught: Pool) -> None:
    given = entries(SIGNS, 30) + entries(UPPER, 20, start=30)
    random.Random(0).shuffle(given)
    found = clustered(taught, given)
    first = found[0]
    assert [one.size for one in found] == sorted((one.size for one in found), reverse=True)
    assert first.size >= 20
    for one in found:
        kinds = [entry.prompt[0] in SIGNS for entry in one.entries]
        assert max(sum(kinds), len(kinds) - sum(kinds)) >= 0.9 * one.size
    assert first.asked == sum(entry.count for entry in first.entries)
    assert [entry.first for entry in first.entries] == sorted(e.first for e in first.entries)


def test_every_prompt_is_in_one_cluster_and_examples_are_of_it(taught: Pool) -> None:
    given = entries(SIGNS, 20) + entries(DIGITS, 10, start=20)
    found = clustered(taught, given)
    assert sorted(e.key for one in found for e in one.entries) == sorted(e.key for e in given)
    for one in found:
        assert set(one.examples) <= set(one.entries)
        assert len(one.examples) == min(3, one.size)


def test_a_new_kind_is_apart_and_more_of_a_skill_is_not(taught: Pool) -> None:
    (new, *_) = clustered(taught, entries(SIGNS, 30))
    assert new.separability is not None
    assert (new.apart, new.lacking) == (True, 0)
    (known, *_) = clustered(taught, entries(LETTERS, 20))
    assert known.nearest[0][0] == "letters"
    assert (known.apart is True, known.lacking) == (False, 24 - known.size)


def test_an_empty_pool_has_nothing_near(empty: Pool) -> None:
    (found, *_) = clustered(empty, entries(SIGNS, 10))
    assert (found.nearest, found.separability, found.apart) == ((), None, None)
    assert cluster_inbox(Known.of(empty.live), [], inbox_features(empty.live, [])) == ()


def test_a_cluster_keeps_its_name_while_others_come_and_is_found_by_any_prompt(
    taught: Pool,
) -> None:
    given = entries(SIGNS, 12)
    before = clustered(taught, given)[0]
    after = clustered(taught, given + entries(SIGNS, 12, seed=32, start=12))
    assert find_cluster(after, before.id).size > before.size
    member = find_cluster(after, before.id).entries[-1]
    assert find_cluster(after, member.key).id == before.id
    assert prompts_of(before) <= prompts_of(find_cluster(after, member.key[:8]))
    with pytest.raises(PoolError, match="no cluster 'nobody'"):
        find_cluster(after, "nobody")
    # Fewer letters name nothing but an id.
    with pytest.raises(PoolError, match="no cluster"):
        find_cluster(after, before.id[:2])


def test_of_too_many_prompts_those_asked_last_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inbox, "MOST_ROWS", 4)
    given = entries(SIGNS, 6)
    assert newest(given) == given[2:]
    assert newest(given[:3]) == given[:3]


def test_what_is_known_is_of_one_revision(taught: Pool) -> None:
    before = Known.of(taught.live)
    taught.remove("digits")
    assert set(before.aliases.values()) == {"letters", "digits"}
    after = Known.of(taught.live)
    assert set(after.aliases.values()) == {"letters"}
    assert (len(before.library.skills), len(after.library.skills)) == (2, 1)
