"""What is taken back is taken back whole: rows, gate, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.errors import LearningInterruptedError
from dylora_moe.lifecycle import consolidating
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.records import Example
from tests.pools import LETTERS, SIGNS, fingerprint, learn, rows, settings, shouted

NEW_RULES = rows(LETTERS, 64, 13, shouted)
VAIN = settings(seeding=None, consolidation={"learning_rate": 1e-9})


def stored(pool: Pool, split: str) -> set[Example]:
    return set(pool.live.read(getattr(pool.revision.skills[0], split)))


def test_an_expert_that_goes_back_has_its_own_rows_again(taught: Pool) -> None:
    before = stored(taught, "examples"), stored(taught, "validation")
    (digits,) = (skill for skill in taught.revision.skills if skill.name == "digits")
    assert learn(taught, "new rules", NEW_RULES).version == 2
    assert not stored(taught, "examples") & before[0]
    assert [v.ref for v in taught.rollback("letters").experts] == ["expert_1@1", "expert_2@1"]
    assert (stored(taught, "examples"), stored(taught, "validation")) == before
    assert set(taught.live.skills[taught.revision.skills[0].skill_id].validation) == before[1]
    assert taught.revision.skills[1] == digits
    # So the rows that it forgot are none that it has.
    again = learn(taught, "new rules", NEW_RULES)
    assert (again.verdict.name, again.action, again.version) == ("revised", "new version", 3)


def test_rows_of_a_step_that_was_taken_back_do_not_come_back_with_a_version(taught: Pool) -> None:
    before = stored(taught, "examples")
    vain = settings(more_data={"learning_rate": 1e-9})
    assert learn(taught, "aside", rows(LETTERS, 64, 23), settings=vain).action == "statistics"
    assert stored(taught, "examples") > before
    taught.rollback()
    assert stored(taught, "examples") == before
    assert learn(taught, "new rules", NEW_RULES).action == "new version"
    taught.rollback("letters")
    assert stored(taught, "examples") == before


def test_new_answers_that_are_not_learned_replace_no_old_ones(taught: Pool) -> None:
    before = fingerprint(taught)
    result = learn(taught, "new rules", NEW_RULES, settings=VAIN)
    assert (result.verdict.name, result.action) == ("revised", "rejected")
    assert "letters did not learn the new answers of letters" in result.message
    assert taught.events("rejected")[-1].message == result.message
    assert fingerprint(taught) == before
    assert taught.unfinished() == []
    assert learn(taught, "new rules", NEW_RULES).action == "new version"


def test_the_last_expert_can_be_removed_and_the_pool_learns_anew(taught: Pool) -> None:
    taught.remove("digits")
    assert taught.remove("letters").experts == ()
    assert taught.generate("abcdef", max_new_tokens=2).expert == "base"
    with Pool.open(taught.path, device="cpu", dtype="fp32") as again:
        assert again.generate("abcdef", max_new_tokens=2).expert == "base"
    assert learn(taught, "letters", rows(LETTERS, 64, 3)).action == "created"
    assert taught.generate("abcdef", max_new_tokens=2).expert == "letters"


def test_a_training_that_is_thrown_away_leaves_nothing_in_the_gate(
    taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gate() -> dict[str, Any]:
        router = taught.live.router
        learned = {**router.correction.state_dict(), "temperature": router.log_temperature}
        return {name: tensor.detach().clone() for name, tensor in learned.items()}

    seen: list[dict[str, Any]] = []
    teach, adapt = consolidating.teach, consolidating.adapt_router

    def spoil(*given: Any, **options: Any) -> Any:
        outcome = teach(*given, **options)
        taught.live.router.correction.delta_W.data.add_(1.0)
        taught.live.router.log_temperature.data.add_(1.0)
        return outcome

    def watch(*given: Any) -> Any:
        seen.append(gate())
        return adapt(*given)

    monkeypatch.setattr(consolidating, "teach", spoil)
    monkeypatch.setattr(consolidating, "adapt_router", watch)
    before = gate()
    vain = settings(more_data={"learning_rate": 1e-9})
    assert learn(taught, "more", rows(LETTERS, 64, 13), settings=vain).action == "statistics"
    (after,) = seen
    assert all((value == before[name]).all() for name, value in after.items())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("none left")])
def test_what_breaks_off_after_the_commit_is_told_as_learned(
    error: BaseException, taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, broken, warnings = LivePool.become, [error], []

    def become(live: LivePool, *given: Any, **options: Any) -> None:
        if broken:
            raise broken.pop()
        original(live, *given, **options)

    class Front:
        def __getattr__(self, name: str) -> Any:
            return warnings.append if name == "warning" else lambda *_: None

    assert taught.live.revision.number == 2
    monkeypatch.setattr(LivePool, "become", become)
    said = r"signs was learned \(revision 3\) and interrupted while it was loaded"
    interrupted = isinstance(error, KeyboardInterrupt)
    with pytest.raises(
        LearningInterruptedError if interrupted else MemoryError,
        match=said if interrupted else "none left",
    ):
        learn(taught, "signs", rows(SIGNS, 64, 5), watch=Front())
    assert interrupted or "signs was learned (revision 3)" in warnings[-1]
    assert taught.events("error") == []
    assert taught.live.revision.number == taught.revision.number == 3
