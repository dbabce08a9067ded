"""Steps back, removals and new names: what they change, and that they change nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.errors import PoolError
from dylora_moe.lifecycle import change
from tests.pools import (
    DIGITS,
    LETTERS,
    SIGNS,
    answers,
    fingerprint,
    learn,
    rows,
    settings,
    shouted,
    states,
)

STRONG = settings(more_data={"epochs": 2})


def test_the_pool_goes_back_to_what_it_was_before_its_last_step(taught: Pool) -> None:
    before = fingerprint(taught)
    assert learn(taught, "signs", rows(SIGNS, 64, 5)).action == "created"
    taught.rollback()
    assert fingerprint(taught) == before
    # And what was taken back can be learned again, as a new revision with a new id.
    result = learn(taught, "signs", rows(SIGNS, 64, 5))
    assert (result.action, result.revision) == ("created", 4)
    assert taught.experts()[-1].expert_id == "expert_4"


def test_the_pool_goes_back_to_empty_and_no_further(taught: Pool) -> None:
    assert taught.rollback().number == 1
    assert taught.rollback().number == 0
    assert taught.experts() == ()
    assert taught.generate("abcdef", max_new_tokens=2).expert == "base"
    with pytest.raises(PoolError, match="no step to take back"):
        taught.rollback()


def test_an_expert_goes_back_to_the_version_it_was_trained_from(taught: Pool) -> None:
    old = states(taught)
    learn(taught, "new rules", rows(LETTERS, 64, 13, shouted), settings=STRONG)
    assert taught.experts()[0].version == 2
    newer = states(taught)["expert_1"]
    revision = taught.rollback("letters")
    assert [version.ref for version in revision.experts] == ["expert_1@1", "expert_2@1"]
    for key, value in states(taught)["expert_1"].items():
        assert (value == old["expert_1"][key]).all()
    # A third version is trained from the first, so going back from it skips the second.
    learn(taught, "newer rules", rows(LETTERS, 64, 17, shouted), settings=STRONG)
    assert taught.experts()[0].ref == "expert_1@3"
    assert taught.rollback("letters").experts[0].ref == "expert_1@1"
    assert any((value != newer[key]).any() for key, value in states(taught)["expert_1"].items())
    with pytest.raises(PoolError, match="no version before v1"):
        taught.rollback("letters")


def test_any_version_is_put_back_into_service_with_the_rows_that_it_answers(taught: Pool) -> None:
    first = fingerprint(taught)
    learn(taught, "new rules", rows(LETTERS, 64, 13, shouted), settings=STRONG)
    second = fingerprint(taught)
    revision = taught.put_back("letters", 1, instead_of=2)
    assert (revision.experts[0].ref, revision.note) == (
        "expert_1@1",
        "letters put back from v2 to v1",
    )
    assert fingerprint(taught).answers == first.answers
    assert taught.events("promoted")[-1].numbers["action"] == "put back"
    # Newer than the one in service, by its id.
    assert taught.put_back("expert_1", 2).experts[0].ref == "expert_1@2"
    now = fingerprint(taught)
    assert (now.answers, now.weights) == (second.answers, second.weights)
    rows_of = {r.name: (r.examples, r.validation) for r in taught.revision.skills}
    then = taught.registry.revision(second.revision)
    assert rows_of == {r.name: (r.examples, r.validation) for r in then.skills}


def test_a_version_is_put_back_after_the_pool_went_back_to_before_it(taught: Pool) -> None:
    learn(taught, "new rules", rows(LETTERS, 64, 13, shouted), settings=STRONG)
    second = fingerprint(taught)
    taught.rollback()
    assert taught.put_back("letters", 2).experts[0].ref == "expert_1@2"
    assert fingerprint(taught).answers == second.answers


def test_only_another_version_that_there_is_can_be_put_back(taught: Pool) -> None:
    before = fingerprint(taught)
    with pytest.raises(PoolError, match="has no v2; there are: v1"):
        taught.put_back("letters", 2)
    with pytest.raises(PoolError, match="v1 of letters is in service already"):
        taught.put_back("letters", 1)
    with pytest.raises(PoolError, match="no expert 'nobody'"):
        taught.put_back("nobody", 1)
    with pytest.raises(PoolError, match="v7 of letters is not in service any more, v1 is"):
        taught.put_back("letters", 1, instead_of=7)
    assert fingerprint(taught) == before


def test_an_expert_is_renamed_without_its_base_and_back(taught: Pool) -> None:
    before = answers(taught)
    with Pool.open(taught.path) as pool:
        pool.rename("letters", "abc")
        assert [version.alias for version in pool.experts()] == ["abc", "digits"]
        assert pool._opened._live is None
        for taken in ("digits", "expert_2", "base", "a b", "../x"):
            with pytest.raises(PoolError):
                pool.rename("abc", taken)
    assert answers(taught) == tuple(text.replace("letters:", "abc:") for text in before)
    event = taught.events("promoted")[-1].numbers
    assert (event["action"], event["revision"]) == ("renamed", taught.revision.number)
    taught.rename("abc", "letters")
    assert answers(taught) == before


def test_a_removed_expert_leaves_the_others_bit_for_bit_and_their_inputs_with_them(
    taught: Pool,
) -> None:
    learn(taught, "signs", rows(SIGNS, 64, 5))
    old = states(taught)
    texts = {p: str(taught.generate(p, max_new_tokens=6)) for p in ("abcdef", "+-*+-*")}
    revision = taught.remove("digits")
    assert [version.alias for version in revision.experts] == ["letters", "signs"]
    assert [skill.name for skill in revision.skills] == ["letters", "signs"]
    assert [row.expert_id for row in taught.live.router.rows] == ["expert_1", "expert_3"]
    assert set(states(taught)) == {"expert_1", "expert_3"}
    for name, state in states(taught).items():
        assert all((value == old[name][key]).all() for key, value in state.items())
    for prompt, text in texts.items():
        assert str(taught.generate(prompt, max_new_tokens=6)) == text
    assert taught.generate("123456", max_new_tokens=1).expert != "digits"
    # Undone by a step back of the pool; learned again under a new id.
    taught.rollback()
    assert taught.generate("123456", max_new_tokens=1).expert == "digits"
    taught.remove("digits")
    assert learn(taught, "digits", rows(DIGITS, 64, 4)).action == "created"
    assert taught.experts()[-1].expert_id == "expert_4"


def test_an_undoing_keeps_the_gate_and_the_number_of_generated_scores(taught: Pool) -> None:
    mlp = settings(router={"gate": "mlp", "top_k": 1}, generate_scores=0)
    learn(taught, "signs", rows(SIGNS, 64, 5), settings=mlp)
    taught.remove("digits")
    assert (taught.live.router.gate, taught.live.router.rule.top_k) == ("mlp", 1)
    maturity = {version.expert_id: version.maturity for version in taught.experts()}
    assert taught.live.router.maturity == maturity
    scores = change.load_card(taught.live, taught.artifacts).by_name()
    assert [score.accuracy for score in scores.values()] == [None, None]


@pytest.mark.parametrize("undo", ["remove", "rollback"])
def test_an_undoing_that_fails_leaves_the_pool_as_it_was(
    undo: str, taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(taught, "new rules", rows(LETTERS, 64, 13, shouted), settings=STRONG)
    before = fingerprint(taught)

    def broken(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(change.router_state, "to_bytes", broken)
        with pytest.raises(KeyboardInterrupt):
            getattr(taught, undo)("letters")
    assert fingerprint(taught) == before


def test_what_is_not_there_cannot_be_undone(taught: Pool) -> None:
    for undo in (taught.rollback, taught.remove):
        with pytest.raises(PoolError, match=r"no expert 'nobody'.*letters, digits"):
            undo("nobody")
