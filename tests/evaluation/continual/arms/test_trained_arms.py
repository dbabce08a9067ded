"""What the arms that train one adapter, or one a visit, are given, and what they hand back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dylora_moe.evaluation.continual.arms import ARMS, lora_learner
from dylora_moe.evaluation.continual.arms.full import FullSequential, trainable
from dylora_moe.evaluation.continual.arms.lora_learner import (
    Lesson,
    LoraLearner,
    phase_of,
    sides,
)
from dylora_moe.evaluation.continual.arms.multi_task import MultiTask
from dylora_moe.evaluation.continual.arms.sequential import ONE, Replay
from dylora_moe.evaluation.continual.arms.visits import VisitRows, end_of, rows_by_skill, visits_of
from dylora_moe.evaluation.continual.results import ArmResult, from_json, to_json
from dylora_moe.evaluation.continual.streams import STREAMS
from dylora_moe.records import Example
from dylora_moe.text.split import validates
from dylora_moe.training.measure import answer_losses
from tests.evaluation.continual.arms.tiny_setting import setting, skills
from tests.models import tiny_base
from tests.pool_fixtures import _no_waiting
from tests.pools import LETTERS, rows

__all__ = ["_no_waiting"]

ALL = ("letters", "digits", "signs")
SEQUENTIAL = ("sequential-lora", "sequential-replay", "ewc", "o-lora", "o-lora-squared")


@dataclass
class Lessons:
    """What a learner was asked to train."""

    names: list[str] = field(default_factory=list)
    rows: list[tuple[Example, ...]] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    penalties: list[str | None] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    beside: list[tuple[str, ...]] = field(default_factory=list)


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> Lessons:
    """Nothing is trained; what would have been is noted."""
    noted = Lessons()

    def train(
        self: LoraLearner, name: str, lesson: Lesson, *, beside: Any = (), penalty: Any = None
    ) -> Any:
        noted.names.append(name)
        noted.rows.append(lesson.rows)
        noted.epochs.append(lesson.epochs)
        noted.penalties.append(None if penalty is None else penalty.name.split()[0])
        noted.told.append("" if penalty is None else penalty.name)
        noted.beside.append(tuple(beside))
        self.trained_tokens += 1
        return SimpleNamespace(best_loss=1.0)

    monkeypatch.setattr(LoraLearner, "train", train)
    return noted


def test_one_adapter_trains_on_every_visit_s_rows_as_they_came(
    lessons: Lessons, tmp_path: Path
) -> None:
    given = setting(tmp_path, "blurred")
    result = ARMS["sequential-lora"].run(given)
    assert lessons.names == [ONE] * 3
    assert sum(lessons.rows, ()) == sum(given.stream.batches, ())
    assert [(stage.after, stage.skill) for stage in result.stages] == [
        (1, "letters"),
        (2, "digits"),
        (3, "signs"),
    ]
    # Those learned and the next; in the end all.
    for stage, asked in zip(result.stages, (("letters", "digits"), ALL, ALL), strict=True):
        wanted = [(skill, row.key) for skill, row in given.test_rows if skill in asked]
        assert [(row.skill, row.key) for row in stage.rows] == wanted


def test_the_test_rows_are_answered_at_the_end_alone_where_that_is_asked_for(
    lessons: Lessons, tmp_path: Path
) -> None:
    for name in SEQUENTIAL:
        result = ARMS[name].run(setting(tmp_path, every_visit=False))
        assert [stage.after for stage in result.stages] == [3]


@pytest.mark.parametrize("name", ["sequential-lora", "o-lora", "full-sequential"])
def test_answers_are_written_to_their_ends_after_the_last_visit_alone(
    name: str, lessons: Lessons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FullSequential, "_train", lambda *_: 1.0)
    stages = ARMS[name].run(setting(tmp_path)).stages
    # Nobody has learned anything, so no answer is right.
    assert [any(row.f1 is None for row in stage.rows) for stage in stages] == [True, True, False]
    assert {row.score for stage in stages for row in stage.rows} == {0.0}


def test_replay_adds_a_few_rows_of_every_earlier_visit(lessons: Lessons, tmp_path: Path) -> None:
    given = setting(tmp_path)
    ARMS["sequential-replay"].run(given)
    visits = visits_of(given.stream)
    assert [len(found) - len(v.rows) for found, v in zip(lessons.rows, visits, strict=True)] == [
        0,
        1,
        2,
    ]
    earlier = {row.key for row in visits[0].rows + visits[1].rows}
    assert {row.key for row in lessons.rows[2][12:]} <= earlier


def test_two_in_a_hundred_rows_are_kept() -> None:
    memory = Replay(0)
    visit = SimpleNamespace(rows=rows(LETTERS, 256, 0))
    memory.keep(None, visit)  # type: ignore[arg-type]
    assert len(memory.rows()) == 5
    memory.keep(None, visit)  # type: ignore[arg-type]
    assert len(memory.rows()) == 10


def test_ewc_is_held_from_the_second_visit_on_and_keeps_no_row(
    lessons: Lessons, tmp_path: Path
) -> None:
    given = setting(tmp_path)
    ARMS["ewc"].run(given)
    assert lessons.penalties == [None, "ewc", "ewc"]
    assert lessons.rows == [visit.rows for visit in visits_of(given.stream)]


def test_o_lora_has_a_new_adapter_for_each_visit_beside_all_earlier_ones(
    lessons: Lessons, tmp_path: Path
) -> None:
    given = setting(tmp_path, "returning")
    result = ARMS["o-lora"].run(given)
    assert lessons.names == ["expert_1", "expert_2", "expert_3", "expert_4"]
    assert lessons.beside[0] == ()
    assert lessons.beside[3] == ("expert_1", "expert_2", "expert_3")
    assert lessons.penalties == [None, *["orthogonality"] * 3]
    assert result.parameters_in_use == result.parameters
    assert result.parameters % 4 == 0


def test_o_lora_s_two_forms_are_two_penalties(lessons: Lessons, tmp_path: Path) -> None:
    for name in ("o-lora", "o-lora-squared"):
        result = ARMS[name].run(setting(tmp_path, every_visit=False))
        assert (result.arm, result.details["squared"]) == (name, name != "o-lora")
    assert lessons.told[:3] == ["", "orthogonality 0.5 to 1", "orthogonality 0.5 to 2"]
    assert lessons.told[3:] == [
        "",
        "orthogonality 0.5 squared to 1",
        "orthogonality 0.5 squared to 2",
    ]


def test_o_lora_leaves_earlier_adapters_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, Any]] = []
    original = LoraLearner.train

    def noted(self: LoraLearner, name: str, lesson: Lesson, **given: Any) -> Any:
        outcome = original(self, name, lesson, **given)
        states.append({other: self.experts.state(other) for other in self.experts.names})
        return outcome

    monkeypatch.setattr(LoraLearner, "train", noted)
    of = skills(2)
    given = setting(
        tmp_path, skills=of, stream=STREAMS["hard"](of, rows=12, batch=6), every_visit=False
    )
    ARMS["o-lora"].run(given)
    first = states[0]["expert_1"]
    assert all(torch.equal(first[key], states[1]["expert_1"][key]) for key in first)
    assert any(bool(value.any()) for key, value in states[1]["expert_2"].items() if "lora_B" in key)


def test_multi_task_has_as_many_tokens_as_ours(tmp_path: Path, lessons: Lessons) -> None:
    given = setting(tmp_path, "mixed")
    MultiTask().run(given)
    assert lessons.epochs == [given.epochs]
    assert sorted(row.key for row in lessons.rows[0]) == sorted(given.stream.truth.keys)


@pytest.mark.parametrize("name", ["sequential-lora", "o-lora", "oracle-bank", "multi-task"])
def test_every_arm_takes_as_many_tokens_as_ours_and_never_fewer_epochs(
    name: str, tmp_path: Path
) -> None:
    def tokens(folder: str, **given: Any) -> int:
        return ARMS[name].run(setting(tmp_path / folder, every_visit=False, **given)).trained_tokens

    once = tokens("once", epochs=1.0)
    # An update a visit is the least there is to add.
    assert abs(tokens("more", epochs=1.0, ours_tokens=2 * once) - 2 * once) <= 3 * 4 * 20
    assert tokens("fewer", epochs=1.0, ours_tokens=once // 2) == once


def test_every_arm_but_those_that_need_borders_runs_on_mixed_traffic() -> None:
    without = {name for name, arm in ARMS.items() if "mixed" not in arm.streams}
    assert without == {*SEQUENTIAL, "full-sequential"}
    for name, arm in ARMS.items():
        assert arm.name == name
        assert arm.title
        assert arm.streams <= set(STREAMS)


def test_a_result_says_what_was_spent(tmp_path: Path) -> None:
    given = setting(tmp_path, every_visit=False)
    result = ARMS["ewc"].run(given)
    assert result.trained_tokens > 0
    assert result.seconds > 0
    assert result.parameters == result.parameters_in_use > 0
    assert [row.key for row in result.neutral] == [row.key for row in given.neutral]
    total = sum(row.loss for row in result.neutral) / sum(row.tokens for row in result.neutral)
    assert result.base_loss == pytest.approx(total)
    assert total > 0
    again, _ = from_json(to_json(result, "x"))
    assert again == result


def test_nothing_that_was_trained_is_left_in_the_arm_s_folder(tmp_path: Path) -> None:
    given = setting(tmp_path, every_visit=False)
    ARMS["sequential-lora"].run(given)
    assert list(given.folder.iterdir()) == []


def test_rows_are_split_as_the_pool_splits_them() -> None:
    found = rows(LETTERS, 60, 0)
    train, watched = sides(found, 0.15)
    assert {row.key for row in watched} == {row.key for row in found if validates(row, 0.15)}
    assert set(train) | set(watched) == set(found)
    assert not set(train) & set(watched)
    # So few that none falls on one side.
    assert sides(train[:3], 0.15) == (train[:3], train[:3])


def test_training_goes_by_the_setting_s_numbers_and_is_never_stopped_early(tmp_path: Path) -> None:
    phase = phase_of(setting(tmp_path, learning_rate=0.5, batch_rows=3), 7.0)
    assert (phase.learning_rate, phase.batch_size, phase.epochs) == (0.5, 3, 7.0)
    assert phase.patience > phase.epochs
    assert (phase.collaboration, phase.train_gate) == ((0.0, 0.0), False)


def test_adapters_of_one_seed_begin_alike_and_of_another_do_not(tmp_path: Path) -> None:
    learner = LoraLearner(setting(tmp_path))
    for name, seed in (("expert_1", 0), ("expert_2", 0), ("expert_3", 1)):
        learner.add(name, seed)
    one, two, other = (learner.experts.state(name) for name in learner.experts.names)
    downs = [key for key in one if "lora_A" in key]
    assert all(torch.equal(one[key], two[key]) for key in downs)
    assert not any(torch.equal(one[key], other[key]) for key in downs)


def test_the_skills_rows_are_all_of_them_wherever_they_came(tmp_path: Path) -> None:
    stream = setting(tmp_path, "returning").stream
    found = rows_by_skill(stream)
    assert {skill: len(own) for skill, own in found.items()} == {
        "letters": 24,
        "digits": 12,
        "signs": 12,
    }
    truth = stream.truth.skill_of
    assert all(truth[row.key] == skill for skill, own in found.items() for row in own)
    assert end_of(stream) == (4, "letters")
    mixed = setting(tmp_path, "mixed").stream
    assert (end_of(mixed), visits_of(mixed)) == ((1, ""), ())


def test_a_visit_s_seed_is_one_that_numpy_takes() -> None:
    assert [VisitRows(number, "a", ()).seed(2**32 - 2) for number in (1, 2)] == [2**32 - 1, 0]


def test_full_fine_tuning_moves_the_base_that_answers_and_learns(tmp_path: Path) -> None:
    of = skills(2)
    stream = STREAMS["hard"](of, rows=24, batch=6)
    bases: list[Any] = []

    def load() -> Any:
        bases.append(tiny_base())
        return bases[-1]

    given = setting(tmp_path, skills=of, stream=stream, base=load, every_visit=False, epochs=4.0)
    result = FullSequential(learning_rate=2e-3).run(given)
    before, after = tiny_base().model.state_dict(), bases[0].model.state_dict()
    assert all(not torch.equal(before[key], after[key]) for key in before)
    start = ARMS["base"].run(given)
    assert _loss(result, "digits") < 0.9 * _loss(start, "digits")
    assert result.base_loss != start.base_loss
    assert result.trained_tokens > 0


def _loss(result: ArmResult, skill: str) -> float:
    return sum(row.loss for row in result.last.rows if row.skill == skill)


def test_a_stock_model_of_the_base_s_weights_gives_its_losses(tmp_path: Path) -> None:
    base = tiny_base()
    learner = LoraLearner(setting(tmp_path, base=lambda: base))
    encoded = learner.encode(rows(LETTERS, 3, 0))
    stock = trainable(base).eval()
    batch, _ = encoded.batch([0], pad_id=0, device=base.device)
    with torch.no_grad():
        loss = stock(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    found = answer_losses(learner.model, encoded, expert="base", only=[0])
    assert float(loss) == pytest.approx(found.mean, abs=1e-4)
    assert all(parameter.requires_grad for parameter in stock.parameters())


def test_the_numbers_are_this_room_s_and_the_training_the_product_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    original: Callable[..., Any] = lora_learner.train_expert

    def noted(*args: Any, **given: Any) -> Any:
        seen.update(given)
        return original(*args, **given)

    monkeypatch.setattr(lora_learner, "train_expert", noted)
    given = setting(tmp_path)
    learner = LoraLearner(given)
    learner.add(ONE, 0)
    found = rows(LETTERS, 40, 0)
    outcome = learner.train(ONE, Lesson(found, 3, 1.0))
    assert learner.trained_tokens == outcome.tokens
    assert seen["seed"] == 3
    train, watched = sides(found, given.learn.validation_fraction)
    assert [row.key for row in seen["train"].encoded] == [row.key for row in train]
    assert [row.key for row in seen["evaluation"]["own"].encoded] == [row.key for row in watched]
