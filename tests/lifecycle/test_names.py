from __future__ import annotations

import pytest

from dylora_moe.errors import PoolError
from dylora_moe.lifecycle.names import checked_name, find_expert, find_skill, free_name
from dylora_moe.records import Artifact, ExpertVersion, PoolRevision, SkillRecord


def revision(**names: str) -> PoolRevision:
    """Experts by alias with the name of their skill."""
    file = Artifact("a.safetensors", "0" * 64)
    experts, skills = [], []
    for number, (alias, skill) in enumerate(names.items(), 1):
        expert = f"expert_{number}"
        experts.append(ExpertVersion(expert, f"s{number}", alias, 1, {}, "x", (file,), 0.0))
        skills.append(SkillRecord(f"s{number}", skill, expert, 1, 8, (), file))
    return PoolRevision(1, 0, tuple(experts), tuple(skills), None, None, "")


def test_a_wish_becomes_a_plain_name_that_nothing_has() -> None:
    pool = revision(sql="questions")
    assert free_name(pool, "my data!") == "my-data"
    assert free_name(pool, "sql") == "sql-2"
    assert free_name(pool, "questions") == "questions-2"
    assert free_name(pool, "expert_1") == "expert_1-2"


@pytest.mark.parametrize("wish", ["", "...", "base", "!!"])
def test_a_wish_of_which_nothing_is_left_is_refused(wish: str) -> None:
    with pytest.raises(PoolError, match="cannot name an expert"):
        free_name(revision(), wish)


def test_a_name_that_a_person_chose_is_taken_as_it_is_or_not_at_all() -> None:
    pool = revision(sql="questions")
    assert checked_name(pool, "my_data.2") == "my_data.2"
    for taken in ("sql", "questions", "expert_1"):
        with pytest.raises(PoolError, match="is taken"):
            checked_name(pool, taken)
    for bad in ("base", "my data", "-x", ".", "../up", ""):
        with pytest.raises(PoolError, match="cannot name an expert"):
            checked_name(pool, bad)


def test_an_expert_may_have_the_name_of_its_own_skill() -> None:
    assert checked_name(revision(sql="questions"), "questions", of="expert_1") == "questions"


def test_experts_and_skills_are_found_by_every_name_they_have() -> None:
    pool = revision(sql="questions", json="records")
    assert find_expert(pool, "json") == find_expert(pool, "expert_2")
    assert find_skill(pool, "records").skill_id == find_skill(pool, "json").skill_id == "s2"
    assert find_skill(pool, "s1").name == "questions"
    with pytest.raises(PoolError, match="there are: sql, json"):
        find_expert(pool, "records")
    with pytest.raises(PoolError, match="there are: questions, records"):
        find_skill(pool, "none")
