"""Laws of the skill library."""

from __future__ import annotations

import pytest
import torch

from dylora_moe.errors import ArtifactError, PoolError, RoutingError
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.skills.library import Skill, SkillLibrary

from .builders import cluster, library


def test_which_rows_are_stored_does_not_depend_on_order_or_batches() -> None:
    rows = cluster(0, 100)
    keys = [f"key {i}" for i in range(100)]
    at_once, in_parts = SkillLibrary(capacity=10), SkillLibrary(capacity=10)
    whole = at_once.add_skill("a", rows, "expert_0", keys)
    in_parts.add_skill("a", rows[60:], "expert_0", keys[60:])
    parts = in_parts.extend("a", rows[:60], keys[:60])
    assert whole.keys == parts.keys
    assert torch.equal(whole.features, parts.features)
    assert whole.features.shape == (10, 24)
    assert whole.statistics.count == parts.statistics.count == 100
    torch.testing.assert_close(whole.statistics.scatter, parts.statistics.scatter)


def test_without_keys_the_content_decides() -> None:
    rows = cluster(0, 30)
    left, right = SkillLibrary(capacity=7), SkillLibrary(capacity=7)
    a = left.add_skill("a", rows, "expert_0")
    b = right.add_skill("a", rows.flip(0), "expert_0")
    assert torch.equal(a.features, b.features)


def test_a_row_that_comes_twice_is_stored_once() -> None:
    built = SkillLibrary()
    built.add_skill("a", cluster(0, 5), "expert_0", list("vwxyz"))
    skill = built.extend("a", cluster(0, 5), list("vwxyz"))
    assert sorted(skill.keys) == list("vwxyz")
    assert skill.features.shape[0] == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_skill_is_written_and_read_bit_for_bit(dtype: torch.dtype) -> None:
    built = SkillLibrary(dtype=dtype)
    skill = built.add_skill("a", cluster(0), "expert_0")
    other = SkillLibrary()
    again = other.put(Skill.from_bytes(skill.to_bytes()))
    assert again.features.dtype == dtype
    assert torch.equal(again.features, skill.features)
    assert torch.equal(again.statistics.mean, skill.statistics.mean)
    assert torch.equal(again.statistics.scatter, skill.statistics.scatter)
    assert (again.skill_id, again.expert_id, again.keys) == ("a", "expert_0", skill.keys)
    assert again.to_bytes() == skill.to_bytes()
    with pytest.raises(ArtifactError):
        Skill.from_bytes(skill.to_bytes()[:200])


def test_the_nearest_skill_of_new_rows_is_their_own() -> None:
    built = library(5)
    for index in range(5):
        ranked = built.nearest(cluster(index, 20, seed=3), k=4)
        assert ranked[0][0] == f"skill_{index}"
        assert len(ranked) == 4
        assert [d for _, d in ranked] == sorted(d for _, d in ranked)
    built.remove("skill_2")
    assert built.nearest(cluster(2, 20, seed=3))[0][0] != "skill_2"
    assert SkillLibrary().nearest(cluster(0)) == ()


def test_a_skill_can_go_to_another_expert_and_out() -> None:
    built = library(2)
    assert built.assign("skill_0", "expert_1").expert_id == "expert_1"
    assert built.remove("skill_0").skill_id == "skill_0"
    assert "skill_0" not in built
    assert len(built) == 1
    assert [s.skill_id for s in built.skills] == ["skill_1"]


def test_statistics_are_of_the_rows_as_they_came_and_not_as_they_are_stored() -> None:
    built = SkillLibrary(capacity=3, dtype=torch.float16)
    skill = built.add_skill("a", cluster(0), "expert_0")
    assert torch.equal(skill.statistics.mean, FeatureStatistics.from_features(cluster(0)).mean)


def test_wrong_values_are_refused() -> None:
    built = library(1)
    with pytest.raises(PoolError, match="already"):
        built.add_skill("skill_0", cluster(0), "expert_0")
    with pytest.raises(PoolError, match="holds skill_0"):
        built["nobody"]
    with pytest.raises(PoolError, match="keys"):
        built.add_skill("b", cluster(0, 3), "expert_0", ["one"])
    with pytest.raises(PoolError, match="float32"):
        SkillLibrary(dtype=torch.float16).add_skill("b", 1e6 * cluster(0), "expert_0")


def test_ranking_does_not_depend_on_how_the_library_came_about() -> None:
    grown, probe = library(3), cluster(3, 20, seed=5)
    grown.nearest(probe)  # What is kept of it must not outlive a change.
    grown.add_skill("skill_3", cluster(3), "expert_3")
    assert grown.nearest(probe)[0][0] == "skill_3"
    grown.extend("skill_1", cluster(1, 30, seed=4))
    grown.remove("skill_0")
    fresh = SkillLibrary()
    for skill in grown.skills:
        fresh.put(skill)
    left, right = grown.nearest(probe, 3), fresh.nearest(probe, 3)
    assert [name for name, _ in left] == [name for name, _ in right]
    for (_, a), (_, b) in zip(left, right, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_a_skill_of_another_width_is_refused_and_the_library_stays_as_it_was() -> None:
    built, narrow = library(2), SkillLibrary()
    narrow.add_skill("skill_1", cluster(1, d=12), "expert_1")
    before, ranked = built.skills, built.nearest(cluster(0, 20))
    for refused in (
        lambda: built.put(narrow["skill_1"]),
        lambda: built.put(Skill.from_bytes(narrow["skill_1"].to_bytes())),
        lambda: built.add_skill("skill_2", cluster(2, d=12), "expert_2"),
    ):
        with pytest.raises(RoutingError, match=r"skill_\d has 12 features .* others have 24"):
            refused()
    assert built.skills == before
    assert built.nearest(cluster(0, 20)) == ranked
    built.remove("skill_0")
    built.put(narrow["skill_1"])
    assert built.nearest(cluster(1, 20, d=12))[0][0] == "skill_1", "a library of one may change"
