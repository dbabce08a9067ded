"""What becomes of an arrival: every corner of the verdict, what a person overrules, what waits."""

from __future__ import annotations

import string

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.errors import ConfigError, PoolError, PoolFullError
from dylora_moe.records import Arrival
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


def test_the_first_skill_is_novel_and_gets_an_expert(empty: Pool) -> None:
    result = learn(empty, "letters", rows(LETTERS, 64, 3))
    assert (result.verdict.name, result.action, result.expert) == ("novel", "created", "letters")
    assert result.revision == empty.revision.number == 1
    assert [version.ref for version in empty.experts()] == ["expert_1@1"]
    assert result.scores["letters"].rows > 0


def test_the_same_data_again_changes_nothing(taught: Pool) -> None:
    before = fingerprint(taught)
    events = len(taught.events())
    result = learn(taught, "letters again", rows(LETTERS, 64, 3))
    assert (result.action, result.expert, result.skill) == ("unchanged", "letters", "letters")
    assert fingerprint(taught) == before
    assert len(taught.events()) == events


def test_other_rows_of_a_skill_are_known_and_a_new_version_where_that_is_better(
    taught: Pool,
) -> None:
    strong = settings(more_data={"epochs": 3})
    result = learn(taught, "more", rows(LETTERS, 64, 13), settings=strong)
    assert (result.verdict.name, result.action, result.version) == ("known", "new version", 2)
    version = taught.experts()[0]
    assert version.parents == ("expert_1@1",)
    assert result.skill == "letters"
    numbers = taught.events("promoted")[-1].numbers
    assert numbers["loss_trained"] < numbers["loss_before"]
    assert taught.revision.skills[0].count > 64


@pytest.mark.parametrize(("replay", "old"), [(0.0, 0), (0.5, 0.5), (9.0, 1.0)])
def test_so_many_stored_rows_train_beside_each_new_one_and_the_plan_says_what_they_cost(
    taught: Pool, replay: float, old: float
) -> None:
    own = settings(replay=replay, more_data={"epochs": 2, "learning_rate": 2e-2, "patience": 9})
    (plan,) = taught.plan_arrivals([Arrival("more", rows(LETTERS, 64, 13))], settings=own)
    stored = taught.live.read(taught.revision.skills[0].examples)
    result = learn(taught, "more", rows(LETTERS, 64, 13), settings=own)
    assert result.action == "new version"
    before = {row.key for row in stored}
    kept = taught.live.read(taught.revision.skills[0].examples)
    new = [row for row in kept if row.key not in before]
    seen = len(new) + round(old * len(stored))
    (phase,) = taught.events("trained")[-1].numbers["phases"]
    per_row = phase["tokens"] / (2 * seen)
    lengths = taught.live.encode([*stored, *new]).lengths
    assert per_row == pytest.approx(sum(lengths) / len(lengths), rel=0.05)
    assert plan.cost.tokens == pytest.approx(phase["tokens"], rel=0.05)


def test_other_rows_whose_training_does_not_help_leave_their_statistics_only(taught: Pool) -> None:
    weights = states(taught)
    weak = settings(more_data={"learning_rate": 1e-4})
    count = taught.revision.skills[0].count
    result = learn(taught, "more", rows(LETTERS, 64, 13), settings=weak)
    assert (result.verdict.name, result.action, result.version) == ("known", "statistics", 1)
    assert taught.revision.skills[0].count > count
    assert len(taught.revision.skills[0].examples) == 2
    assert taught.revision.skills[0].validation != ()
    for name, state in states(taught).items():
        assert all((state[key] == weights[name][key]).all() for key in state)
    numbers = taught.events("promoted")[-1].numbers
    assert 0.995 * numbers["loss_before"] < numbers["loss_trained"] < numbers["loss_before"]
    # The scores are those of the weights that stay, not of those that were tried.
    measured = taught.evaluate(generate=False)["letters"].loss
    assert result.scores["letters"].loss == pytest.approx(measured, rel=1e-6)


def test_other_inputs_that_an_expert_answers_well_are_covered_by_it(empty: Pool) -> None:
    long = settings(consolidation={"epochs": 12})
    broad = string.ascii_letters + string.digits
    learn(empty, "words", rows(broad, 64, 3, constant), settings=long)
    weights = states(empty)
    result = learn(empty, "digits", rows(DIGITS, 64, 4, constant))
    assert (result.verdict.name, result.action, result.expert) == ("covered", "covered", "words")
    assert len(empty.experts()) == 1
    assert [skill.name for skill in empty.revision.skills] == ["words", "digits"]
    assert {skill.expert_id for skill in empty.revision.skills} == {"expert_1"}
    assert [row.expert_id for row in empty.live.router.rows] == ["expert_1", "expert_1"]
    assert empty.generate("123456", max_new_tokens=1).expert == "words"
    assert list(result.scores) == ["words", "digits"]
    for key, value in states(empty)["expert_1"].items():
        assert (value == weights["expert_1"][key]).all()


def test_a_covered_arrival_that_has_something_to_teach_becomes_a_new_version(taught: Pool) -> None:
    lenient = settings(novelty={"badly": 1.5}, more_data={"epochs": 3})
    result = learn(taught, "signs", rows(SIGNS, 64, 5), settings=lenient)
    assert (result.verdict.name, result.action, result.version) == ("covered", "new version", 2)
    assert len(taught.experts()) == 2
    assert [skill.name for skill in taught.revision.skills] == ["letters", "digits", "signs"]


def test_the_same_inputs_with_other_answers_revise_the_skill(taught: Pool) -> None:
    old = {example.key for example in rows(LETTERS, 64, 3)}
    result = learn(taught, "new rules", rows(LETTERS, 64, 13, shouted))
    assert (result.verdict.name, result.action) == ("revised", "new version")
    assert (result.expert, result.version, result.skill) == ("letters", 2, "letters")
    assert any("revised to the new answers" in e.message for e in taught.events("warning"))
    # Trained on the new rows alone: the old answers are not rehearsed.
    record = taught.revision.skills[0]
    trained = sum(taught.live.encode(taught.live.read(record.examples)).lengths)
    seeding, consolidation = taught.events("trained")[-1].numbers["phases"]
    assert (seeding["name"], consolidation["tokens"]) == ("seeding", 2 * trained)
    kept = {example.key for example in taught.live.read(record.examples + record.validation)}
    assert not kept & old


def test_too_few_rows_are_unsure_and_wait_until_a_second_batch_joins_them(empty: Pool) -> None:
    before = fingerprint(empty)
    first = learn(empty, "monday", rows(LETTERS, 16, 1))
    assert (first.verdict.name, first.action) == ("unsure", "waiting")
    assert "16 rows wait" in first.message
    assert fingerprint(empty) == before
    # The same command again does not make the rows more.
    assert "16 rows wait" in learn(empty, "monday", rows(LETTERS, 16, 1)).message
    other = learn(empty, "strangers", rows(DIGITS, 16, 2))
    assert (other.action, other.message.rpartition(";")[2]) == (
        "waiting",
        " 32 rows wait in the pool",
    )

    second = learn(empty, "tuesday", rows(LETTERS, 20, 3))
    assert second.action == "created"
    stored = empty.revision.skills[0]
    keys = {example.key for example in empty.live.read(stored.examples + stored.validation)}
    assert keys == {e.key for e in (*rows(LETTERS, 16, 1), *rows(LETTERS, 20, 3))}
    arrived = empty.events("arrival")[-1].numbers
    assert (arrived["arrival"], arrived["rows"]) == ("tuesday", 36)
    # The strangers still wait for rows of their kind.
    assert "letters" not in [skill.name for skill in empty.revision.skills]
    assert learn(empty, "digits", rows(DIGITS, 20, 4)).action == "created"
    assert empty.revision.skills[1].name == "digits"


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"growth": False}, "growth is switched off"),
        ({"max_experts": 2}, "2 of 2 experts in use"),
        ({"max_parameters": 100}, "trainable parameters of 100"),
        ({"cooldown": 3}, "0 arrivals since the last new expert; the cooldown is 3"),
    ],
    ids=["switch", "experts", "parameters", "cooldown"],
)
def test_a_pool_that_may_not_grow_lets_a_novel_arrival_wait_and_says_why(
    taught: Pool, limits: dict[str, object], reason: str
) -> None:
    before = fingerprint(taught)
    result = learn(taught, "signs", rows(SIGNS, 64, 5), settings=settings(novelty=limits))
    assert (result.verdict.name, result.action) == ("novel", "waiting")
    assert reason in result.message
    assert reason in taught.events("waiting")[-1].message
    assert fingerprint(taught) == before


def test_what_waits_for_a_pool_that_may_not_grow_is_learned_when_it_may(taught: Pool) -> None:
    still = settings(novelty={"growth": False})
    assert learn(taught, "signs", rows(SIGNS, 64, 5), settings=still).action == "waiting"
    assert learn(taught, "signs", rows(SIGNS, 64, 5)).action == "created"
    assert not taught._storage.examples.waiting()


def test_the_cooldown_counts_arrivals_that_were_settled(taught: Pool) -> None:
    cool = settings(novelty={"cooldown": 2}, more_data={"learning_rate": 1e-9})
    assert learn(taught, "more", rows(LETTERS, 64, 13), settings=cool).action == "statistics"
    waiting = learn(taught, "signs", rows(SIGNS, 64, 5), settings=cool)
    assert "1 arrivals since the last new expert" in waiting.message
    assert learn(taught, "signs", rows(SIGNS, 64, 5), settings=cool).action == "created"


@pytest.mark.parametrize("limits", [{"growth": False}, {"max_experts": 2}, {"max_parameters": 9}])
def test_a_new_expert_that_a_person_asks_for_against_a_cap_is_refused(
    taught: Pool, limits: dict[str, object]
) -> None:
    before = fingerprint(taught)
    with pytest.raises(PoolFullError):
        learn(taught, "signs", rows(SIGNS, 64, 5), as_new=True, settings=settings(novelty=limits))
    assert fingerprint(taught) == before
    assert taught.events("error")[-1].numbers["type"] == "PoolFullError"
    assert taught.unfinished() == []


def test_as_new_makes_an_expert_of_what_is_too_little_to_judge_and_gives_it_the_name(
    taught: Pool,
) -> None:
    result = learn(taught, "signs", rows(SIGNS, 20, 5), as_new=True, name="operators")
    assert (result.verdict.name, result.action, result.expert) == ("unsure", "created", "operators")


def test_into_learns_the_rows_into_the_named_skill_whatever_the_verdict(taught: Pool) -> None:
    strong = settings(more_data={"epochs": 3})
    result = learn(taught, "signs", rows(SIGNS, 64, 5), into="digits", settings=strong)
    assert result.verdict.name == "novel"
    assert (result.expert, result.skill) == ("digits", "digits")
    assert result.action in ("new version", "statistics")
    assert len(taught.experts()) == 2


def test_overruling_with_what_is_not_there_or_contradicts_itself_is_refused(taught: Pool) -> None:
    before = fingerprint(taught)
    events = len(taught.events())
    with pytest.raises(PoolError, match="no skill 'nowhere'"):
        learn(taught, "signs", rows(SIGNS, 64, 5), into="nowhere")
    with pytest.raises(ConfigError, match="contradict"):
        learn(taught, "signs", rows(SIGNS, 64, 5), into="digits", as_new=True)
    with pytest.raises(PoolError, match="'digits' is taken"):
        learn(taught, "signs", rows(SIGNS, 64, 5), name="digits")
    assert fingerprint(taught) == before
    assert {event.kind for event in taught.events()[events:]} == {"arrival", "error"}


def test_an_arrival_with_the_name_of_an_expert_gets_a_name_of_its_own(taught: Pool) -> None:
    result = learn(taught, "digits", rows(SIGNS, 64, 5))
    assert (result.action, result.expert) == ("created", "digits-2")


def test_plan_says_the_verdict_and_the_cost_and_changes_nothing(taught: Pool) -> None:

    before = fingerprint(taught)
    events = len(taught.events())
    arrivals = [
        Arrival("signs", rows(SIGNS, 64, 5)),
        Arrival("more", rows(LETTERS, 64, 13)),
        Arrival("few", rows(SIGNS, 8, 6)),
    ]
    novel, known, unsure = taught.plan_arrivals(arrivals, settings=settings())
    (again,) = taught.plan_arrivals([Arrival("again", rows(LETTERS, 64, 3))], settings=settings())
    assert (again.verdict.name, again.cost.tokens) == ("known", 0)
    assert [p.verdict.name for p in (novel, known, unsure)] == ["novel", "known", "unsure"]
    assert novel.verdict.separability is not None
    # The other was seen to do badly at a glance.
    assert set(novel.nearest_losses) < {"letters", "digits"}
    assert len(novel.nearest_losses) == 1
    assert novel.base_loss is not None
    assert novel.cost.parameters == taught.live.experts.parameter_count("expert_1")
    assert novel.cost.tokens > known.cost.tokens > unsure.cost.tokens == 0
    assert known.cost.parameters == 0
    # A version is a whole adapter on disk, new or not.
    assert known.cost.bytes == novel.cost.bytes > 0
    assert fingerprint(taught) == before
    assert len(taught.events()) == events
