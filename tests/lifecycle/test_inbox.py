"""Laws of the inbox's clusters: prompts of a kind together, named steadily, held against skills.

Over features of kinds that lie apart, since what a random base sees of prompts does not.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from dylora_moe.build.pool import Pool
from dylora_moe.errors import PoolError
from dylora_moe.foundation.statistics import FeatureStatistics
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
from dylora_moe.skills.library import SkillLibrary

D = 32
Asked = tuple[InboxEntry, Tensor]


def noise(count: int, seed: int) -> Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed))


def seen(kind: int, count: int, seed: int) -> Tensor:
    """Features of a kind, in its own direction from what is foreign."""
    return 10 + 2 * noise(1, 100 + kind) + noise(count, seed)


def asked(kind: int, count: int, start: int = 0) -> list[Asked]:
    """Prompts of a kind, one after the other."""
    return [
        (
            InboxEntry(
                (Turn("user", f"{kind}: {start + i}"),), 1 + i % 2, f"t{start + i:03d}", "u"
            ),
            row,
        )
        for i, row in enumerate(seen(kind, count, 7 + start + kind))
    ]


def known(*kinds: int) -> Known:
    """A pool that has these skills."""
    library = SkillLibrary()
    for kind in kinds:
        library.add_skill(f"skill_{kind}", seen(kind, 64, 50 + kind), f"expert_{kind}")
    foreign = FeatureStatistics.from_features(10 + noise(100, 5))
    return Known(library, foreign, {f"skill_{kind}": f"of {kind}" for kind in kinds}, 1)


def clustered(pool: Known, given: list[Asked], needed: int = 24) -> tuple[InboxCluster, ...]:
    entries, features = zip(*given, strict=True)
    return cluster_inbox(pool, entries, torch.stack(features), InboxRules(needed=needed))


def kind_of(entry: InboxEntry) -> str:
    return entry.prompt.partition(":")[0]


def test_prompts_of_a_kind_are_a_cluster_the_largest_first() -> None:
    given = asked(3, 20) + asked(4, 30, start=20)
    random.Random(0).shuffle(given)
    first, second = clustered(known(1, 2), given)
    assert [{kind_of(entry) for entry in one.entries} for one in (first, second)] == [{"4"}, {"3"}]
    assert (first.size, second.size) == (30, 20)
    assert first.asked == sum(entry.count for entry in first.entries) == 45
    assert [entry.first for entry in first.entries] == sorted(e.first for e in first.entries)


def test_every_prompt_is_in_one_cluster_and_examples_are_of_it() -> None:
    given = asked(3, 12) + asked(4, 2, start=12)
    found = clustered(known(1), given)
    assert sorted(e.key for one in found for e in one.entries) == sorted(e.key for e, _ in given)
    for one in found:
        assert set(one.examples) <= set(one.entries)
        assert len(one.examples) == min(3, one.size)


def test_a_new_kind_is_apart_and_more_of_a_skill_is_not() -> None:
    pool = known(1, 2)
    (new,) = clustered(pool, asked(3, 30))
    assert (new.apart, new.lacking) == (True, 0)
    assert {name for name, _ in new.nearest} == {"of 1", "of 2"}
    (more,) = clustered(pool, asked(2, 20))
    assert more.nearest[0][0] == "of 2"
    assert more.separability is not None
    assert more.separability.value < 0.8 < new.separability.low  # type: ignore[union-attr]
    assert (more.apart is True, more.lacking) == (False, 4)


def test_an_empty_pool_has_nothing_near() -> None:
    (found,) = clustered(known(), asked(3, 10))
    assert (found.nearest, found.separability, found.apart) == ((), None, None)
    assert cluster_inbox(known(), [], torch.zeros(0, D)) == ()


def test_a_cluster_keeps_its_name_while_others_come_and_is_found_by_any_prompt() -> None:
    pool, given = known(1), asked(3, 12)
    (before,) = clustered(pool, given)
    after = clustered(pool, given + asked(3, 12, start=12) + asked(4, 30, start=24))
    found = find_cluster(after, before.id)
    assert (found.id, found.size) == (before.id, 24)
    member = found.entries[-1]
    assert find_cluster(after, member.key) == find_cluster(after, member.key[:8]) == found
    assert prompts_of(before) < prompts_of(found)
    with pytest.raises(PoolError, match="no cluster 'nobody'"):
        find_cluster(after, "nobody")
    # Fewer letters name nothing but an id.
    with pytest.raises(PoolError, match="no cluster"):
        find_cluster(after, before.id[:2])


def test_of_too_many_prompts_those_asked_last_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inbox, "MOST_ROWS", 2)
    entries = [InboxEntry((Turn("user", name),), 1, name, last) for name, last in
               (("a", "3"), ("b", "1"), ("c", "2"))]  # fmt: skip
    assert newest(entries) == [entries[0], entries[2]]
    assert newest(entries[:2]) == entries[:2]


def test_what_is_known_is_of_one_revision(taught: Pool) -> None:
    before = Known.of(taught.live)
    taught.remove("digits")
    assert set(before.aliases.values()) == {"letters", "digits"}
    after = Known.of(taught.live)
    assert set(after.aliases.values()) == {"letters"}
    assert (len(before.library.skills), len(after.library.skills)) == (2, 1)
    entry = InboxEntry((Turn("user", "abc"),), 1, "", "")
    assert inbox_features(taught.live, [entry]).shape == (1, taught.live.own.shape[1])
    assert inbox_features(taught.live, []).shape == (0, taught.live.own.shape[1])
