"""What the gate lets in, what it refuses, and that everybody else stays as they were."""

from __future__ import annotations

from typing import Any

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.lifecycle import scoring_pass
from dylora_moe.training.rows import Rows
from tests.pools import (
    DIGITS,
    LETTERS,
    SIGNS,
    constant,
    fingerprint,
    learn,
    rows,
    settings,
    shouted,
    states,
)


def test_a_new_expert_that_draws_away_an_older_skill_is_refused_and_leaves_no_trace(
    taught: Pool,
) -> None:
    before = fingerprint(taught)
    versions = taught.registry.versions("expert_3")
    result = learn(taught, "rival", rows(LETTERS, 64, 13, shouted), as_new=True)
    assert (result.action, result.expert, result.revision) == ("rejected", None, before.revision)
    assert "letters would get worse" in result.message
    assert fingerprint(taught) == before
    assert taught.registry.versions("expert_3") == versions == []
    assert taught.unfinished() == []
    gate = taught.events("gate")[-1].numbers
    assert not gate["promoted"]
    assert gate["after"]["letters"] > gate["before"]["letters"]
    assert taught.events("rejected")[-1].numbers["arrival"] == "rival"


def test_a_new_version_that_spoils_another_skill_of_its_expert_is_refused(empty: Pool) -> None:
    broad = "".join(map(chr, range(65, 91))) + LETTERS + DIGITS
    long = settings(consolidation={"epochs": 6, "batch_size": 8})
    learn(empty, "words", rows(broad, 64, 3, constant), settings=long)
    assert learn(empty, "digits", rows(DIGITS, 64, 4, constant)).action == "covered"
    before = fingerprint(empty)
    strong = settings(more_data={"epochs": 4, "learning_rate": 3e-2, "batch_size": 8}, replay=0.0)
    result = learn(empty, "new rules", rows(broad, 64, 5, shouted), into="words", settings=strong)
    assert result.action == "rejected"
    assert "digits would get worse" in result.message
    assert fingerprint(empty) == before


def test_a_refused_arrival_keeps_the_rows_that_waited(taught: Pool) -> None:
    few = rows(LETTERS, 12, 21, shouted)
    assert learn(taught, "rival", few).action == "waiting"
    result = learn(taught, "rival", rows(LETTERS, 64, 13, shouted), as_new=True)
    assert result.action == "rejected"
    ((name, waiting),) = taught._storage.examples.waiting()
    assert (name, {e.key for e in waiting}) == ("rival", {e.key for e in few})


def test_a_new_expert_leaves_the_older_ones_bit_for_bit_in_memory_and_on_disk(taught: Pool) -> None:
    before, old = fingerprint(taught), states(taught)
    files = {a.path for version in taught.experts() for a in version.files}
    assert learn(taught, "signs", rows(SIGNS, 64, 5)).action == "created"
    after = fingerprint(taught)
    for path in files:
        assert after.files[path] == before.files[path]
    for name, state in old.items():
        for key, value in state.items():
            assert (states(taught)[name][key] == value).all()
    assert taught.experts()[:2] == taught.registry.revision(before.revision).experts


def test_rows_whose_routing_did_not_move_are_not_scored_again(
    taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, scored = scoring_pass.answer_losses, []

    def counting(model: Any, given: Rows, **options: Any) -> Any:
        only = options.get("only")
        scored.extend(given.encoded[i].key for i in (range(len(given)) if only is None else only))
        return original(model, given, **options)

    monkeypatch.setattr(scoring_pass, "answer_losses", counting)
    before = {skill: card.rows for skill, card in cards(taught).items()}
    assert learn(taught, "signs", rows(SIGNS, 64, 5)).action == "created"
    after = cards(taught)
    moved = {
        row.key
        for skill, old in before.items()
        for row, new in zip(old, after[skill].rows, strict=True)
        if row.moved(new.to)
    }
    unmoved = {row.key for old in before.values() for row in old} - moved
    assert unmoved
    assert not unmoved & set(scored)
    fresh = {row.key for row in after[list(after)[-1]].rows}
    assert fresh | moved == set(scored)
    assert taught.events("gate")[-1].numbers["rows_rescored"] == len(fresh | moved)


def test_scores_that_were_taken_over_equal_scores_measured_anew(taught: Pool) -> None:
    learn(taught, "signs", rows(SIGNS, 64, 5))
    kept = cards(taught)
    anew = scoring_pass.score_pool(
        taught.live, scoring_pass.Scorecard({}), generate=settings().generate_scores
    )
    for skill, card in anew.card.skills.items():
        assert kept[skill].loss == pytest.approx(card.loss, abs=1e-4)
        assert kept[skill].pinned_loss == pytest.approx(card.pinned_loss, abs=1e-4)
        assert kept[skill].accuracy == card.accuracy


def cards(pool: Pool) -> dict[str, Any]:
    from dylora_moe.lifecycle.change import load_card

    return dict(load_card(pool.live, pool.artifacts).skills)
