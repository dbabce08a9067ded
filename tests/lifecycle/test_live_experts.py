"""Which experts are read when a revision becomes live, and what memory they may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dylora_moe.build.pool import Pool
from dylora_moe.errors import ArtifactError, ConfigError
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.observation import stored_sides
from dylora_moe.records import Example
from dylora_moe.skills.library import Skill
from dylora_moe.training.rows import Rows
from tests.pools import LETTERS, PROMPTS, answers, fingerprint, learn, rows, shouted, states


def test_opening_reads_no_weights_and_the_first_answer_only_those_it_needs(taught: Pool) -> None:
    taught.close()
    with Pool.open(taught.path, device="cpu", dtype="fp32") as pool:
        experts = pool.live.experts
        assert len(experts.names) == len(pool.experts()) > 1
        assert experts.resident == ()
        assert {experts.tier(name) for name in experts.names} == {"disk"}
        pool.generate("123456", expert="digits", max_new_tokens=1)
        assert experts.resident == (pool.live.version("digits").expert_id,)


def test_validation_rows_are_encoded_when_they_are_first_scored_and_once(
    taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {skill: live.rows for skill, live in taught.live.skills.items()}
    taught.close()
    calls: list[int] = []
    encode = LivePool.encode

    def counted(self: LivePool, examples: Sequence[Example], **given: Any) -> Rows:
        calls.append(len(examples))
        return encode(self, examples, **given)

    monkeypatch.setattr(LivePool, "encode", counted)
    with Pool.open(taught.path, device="cpu", dtype="fp32") as pool:
        live = pool.live
        assert calls == []
        for _ in range(2):
            for skill in live.skills.values():
                rows, known = skill.rows, before[skill.skill_id]
                assert rows is not None
                assert known is not None
                assert torch.equal(rows.features, known.features)
            live.become(live.revision)
        assert calls == [len(skill.validation) for skill in live.skills.values()]


def test_a_skills_file_is_read_once_and_missed_though_it_was_read(
    taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, read = taught.live, []
    parse = Skill.from_bytes

    def noted(body: bytes) -> Skill:
        read.append(parse(body))
        return read[-1]

    monkeypatch.setattr(Skill, "from_bytes", noted)
    before = live.library
    live.become(live.revision)
    read.clear()
    live.become(live.revision)
    assert read == []
    assert live.library is not before, "a library that was changed by half is not taken again"
    for ours, theirs in zip(live.library.skills, before.skills, strict=True):
        assert torch.equal(ours.features, theirs.features)
        assert ours.keys == theirs.keys
    one = live.revision.skills[0]
    changed = replace(live.revision, skills=live.revision.skills[1:])
    live.become(changed)
    live.become(replace(live.revision, skills=(*changed.skills, one)))
    assert [skill.skill_id for skill in read] == [one.skill_id], "what left is let go"
    (taught.path / one.features.path).unlink()
    with pytest.raises(ArtifactError, match="missing"):
        live.become(live.revision)


def test_a_pool_that_changes_for_ever_keeps_what_the_revision_names_alone(taught: Pool) -> None:
    live = taught.live
    first = taught.revision.number
    for seed in (31, 32, 33):
        learn(taught, f"more {seed}", rows(LETTERS, 64, seed, shouted), into="letters")
        live.encode_validation()
        stored_sides(live)
        live.become(live.revision)
    assert taught.revision.number > first + 1, "the test needs a pool that changed"
    taught.rollback()
    live.become(taught.registry.current())
    skills = live.revision.skills
    assert set(live._rows) == {("sequence", skill.validation) for skill in skills}
    files = {file for skill in skills for file in (*skill.examples, *skill.validation)}
    assert set(live._stored._keys) == files


def test_a_pool_with_room_for_one_expert_answers_as_one_with_room_for_all(taught: Pool) -> None:
    before, weights = answers(taught), states(taught)
    size = max(taught.live.experts.bytes(name) for name in taught.live.experts.names)
    taught.close()
    with Pool.open(taught.path, device="cpu", dtype="fp32", expert_memory=size) as pool:
        assert answers(pool) == before
        for prompt in PROMPTS:
            pool.generate(prompt, max_new_tokens=1)
        experts = pool.live.experts
        for name in experts.names:
            experts.touch([name])
            assert experts.resident == (name,)
        assert all(
            torch.equal(value, states(pool)[name][key])
            for name, state in weights.items()
            for key, value in state.items()
        )


def test_what_was_promoted_can_leave_memory_for_its_files(taught: Pool) -> None:
    experts = taught.live.experts
    before = fingerprint(taught)
    for name in experts.names:
        experts.offload(name)
        assert experts.tier(name) == "disk"
    assert fingerprint(taught) == before


def test_a_change_by_hand_is_taken_back_and_what_did_not_change_is_not_read(taught: Pool) -> None:
    before, live = fingerprint(taught), taught.live
    first, second = live.experts.names[:2]
    live.experts.touch([first, second])
    with torch.no_grad():
        next(iter(live.experts.parameters_of(first).values())).add_(1.0)
    kept = [id(p) for p in live.experts.parameters_of(second).values()]
    live.become(taught.revision, dirty=live.experts.names)
    assert [id(p) for p in live.experts.parameters_of(second).values()] == kept
    assert fingerprint(taught) == before


def test_numbers_that_no_file_holds_are_not_taken_for_those_of_its_files(taught: Pool) -> None:
    live = taught.live
    changed, trained = live.experts.names[:2]
    live.experts.touch([changed, trained])
    with torch.no_grad():
        next(iter(live.experts.parameters_of(changed).values())).add_(1.0)
    state = live.experts.state(changed)
    live.experts.set_trainable([trained])
    live.experts.freeze()
    live.become(taught.revision)
    for name, tier in ((changed, "memory"), (trained, "disk")):
        live.experts.offload(name)
        assert live.experts.tier(name) == tier
    kept = live.experts.state(changed)
    assert all(torch.equal(kept[key], value) for key, value in state.items())


def test_what_replaces_weights_in_memory_is_read_before_they_go(taught: Pool) -> None:
    live = taught.live
    version = taught.experts()[0]
    live.experts.touch([version.expert_id])
    live.experts.set_trainable([version.expert_id])
    live.experts.freeze()
    file = taught.path / version.files[0].path
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    file.write_bytes(bytes(body))
    state = live.experts.state(version.expert_id)
    for change in (
        lambda: live.become(taught.revision, dirty=[version.expert_id]),
        lambda: live.restore_expert(version.expert_id),
    ):
        with pytest.raises(ArtifactError, match=f"{version.expert_id}/v1/.*damaged"):
            change()
        kept = live.experts.state(version.expert_id)
        assert all(torch.equal(kept[key], value) for key, value in state.items())


def test_memory_for_no_expert_is_refused(taught: Pool, tmp_path: Path) -> None:
    taught.close()
    with (
        Pool.open(taught.path, device="cpu", dtype="fp32", expert_memory=0) as pool,
        pytest.raises(ConfigError, match="0 bytes hold no expert"),
    ):
        pool.generate("a", max_new_tokens=1)
