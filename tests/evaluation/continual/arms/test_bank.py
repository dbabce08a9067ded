"""The bank is trained once, and each (row, adapter) is answered once for all arms."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dylora_moe.errors import DataError
from dylora_moe.evaluation.continual.arms import bank, lora_learner
from dylora_moe.evaluation.continual.arms.bank import Bank
from dylora_moe.evaluation.continual.arms.banked import (
    Assigned,
    Chosen,
    OurRouter,
    derangement,
    fitted_router,
    oracle,
    own_features,
)
from dylora_moe.evaluation.continual.arms.choosers import Choice, centroid
from dylora_moe.evaluation.continual.arms.lora_learner import sides
from dylora_moe.evaluation.continual.results import ArmResult, RowResult
from dylora_moe.evaluation.continual.streams import STREAMS
from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.base import load_base
from dylora_moe.records import BASE_NAME
from dylora_moe.training.measure import answer_losses
from tests.evaluation.continual.arms.tiny_setting import setting, skills
from tests.pool_fixtures import _no_waiting, base_folder

__all__ = ["_no_waiting", "base_folder"]

ORACLE = Assigned("oracle-bank", "", oracle)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the bank was trained already."""
    folder = tmp_path_factory.mktemp("bank")
    ORACLE.run(setting(folder))
    return folder


def answered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows are answered anew, by call."""
    counts: list[int] = []
    original = bank.answer_rows

    def noted(*args: Any, **kwargs: Any) -> tuple[RowResult, ...]:
        counts.append(len(kwargs["only"]))
        return original(*args, **kwargs)

    monkeypatch.setattr(bank, "answer_rows", noted)
    return counts


def test_a_bank_that_is_there_is_neither_trained_nor_asked_again(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ORACLE.run(setting(shared))
    monkeypatch.setattr(lora_learner, "train_expert", None)
    counts = answered(monkeypatch)
    again = ORACLE.run(setting(shared))
    assert counts == [0]
    assert again.stages == first.stages
    assert again.trained_tokens == first.trained_tokens > 0


def test_the_oracle_s_rows_are_those_of_each_skill_s_own_adapter_alone(shared: Path) -> None:
    given = setting(shared)
    found = ORACLE.run(given).last.rows
    own = Bank(given)
    for skill in own.skills:
        places = [i for i, name in enumerate(own.learner.asked.skills) if name == skill]
        losses = answer_losses(
            own.learner.model,
            own.learner.asked.rows,
            expert=own.adapters[skill].expert,
            only=places,
        )
        assert [found[i].loss for i in places] == pytest.approx(losses.total.tolist(), abs=1e-4)
    assert [row.skill for row in found] == [skill for skill, _ in given.test_rows]
    assert {(row.expert, row.confidence) for row in found} == {(None, None)}


def test_an_adapter_that_was_stored_answers_as_the_one_that_was_trained(
    shared: Path, tmp_path: Path
) -> None:
    trained, stored = ORACLE.run(setting(tmp_path)), ORACLE.run(setting(shared))
    assert trained.last.rows == stored.last.rows


def test_a_chooser_s_new_pairs_alone_are_answered(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = setting(shared)
    first = given.test_rows[0][0]

    def always_first(train: Any, test: torch.Tensor, seed: int) -> Choice:
        return Choice(tuple(train), torch.zeros(len(test), dtype=torch.long))

    counts = answered(monkeypatch)
    rows = Chosen("all-to-one", "", always_first).run(given).last.rows
    own = sum(skill == first for skill, _ in given.test_rows)
    assert counts == [len(rows) - own]
    assert {row.expert for row in rows} == {first}
    right = ORACLE.run(given).last.rows
    for one, other in zip(rows, right, strict=True):
        assert (one.loss == other.loss) == (one.skill == first)


def test_a_mixture_is_answered_and_not_kept(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Bank(setting(shared))
    names = [own.adapters[skill].expert for skill in own.skills]
    weights = torch.zeros(len(own.learner.asked), len(names))
    weights[:, 0] = 1.0
    weights[0, :2] = 0.5
    weights[1] = 0.0
    counts = answered(monkeypatch)
    found = own.answer(Gates(tuple(names), weights))
    assert own.answer(Gates(tuple(names), weights)) == found
    assert counts[-1] == 1
    losses = answer_losses(
        own.learner.model, own.learner.asked.rows, gates=Gates(tuple(names), weights)
    )
    assert [row.loss for row in found] == pytest.approx(losses.total.tolist(), abs=1e-4)
    used = own.parameters_in_use(Gates(tuple(names), weights))
    one = own.learner.experts.parameter_count(names[0])
    assert used == pytest.approx(one)


def test_the_empty_name_is_the_base(shared: Path) -> None:
    own = Bank(setting(shared))
    found = own.answer(own.pinned([""] * len(own.learner.asked)))
    losses = answer_losses(own.learner.model, own.learner.asked.rows, expert=BASE_NAME)
    assert [row.loss for row in found] == pytest.approx(losses.total.tolist(), abs=1e-4)


def test_a_damaged_adapter_is_trained_again(shared: Path, tmp_path: Path) -> None:
    given = setting(tmp_path)
    first = ORACLE.run(given)
    folder = Bank(given).adapters["digits"].folder
    (folder / "adapter_model.safetensors").write_bytes(b"no tensors")
    again = ORACLE.run(given)
    assert losses_of(again) == pytest.approx(losses_of(first), abs=1e-4)
    (folder / "facts.json").write_text("{")
    assert losses_of(ORACLE.run(given)) == pytest.approx(losses_of(first), abs=1e-4)


def losses_of(result: ArmResult) -> list[float]:
    return [row.loss for row in result.last.rows]


@pytest.mark.parametrize("change", [{"rank": 3}, {"epochs": 1.0}, {"seed": 1}])
def test_what_decides_an_adapter_decides_its_place(
    shared: Path, tmp_path: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bank, "_trained", _not_trained)
    places = [
        [one.folder.name for one in Bank(setting(tmp_path, **changes)).adapters.values()]
        for changes in ({}, change)
    ]
    assert not set(places[0]) & set(places[1])
    kept = [one.folder.name for one in Bank(setting(shared)).adapters.values()]
    assert places[0] == kept


def test_another_version_trains_and_answers_anew(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bank, "_trained", _not_trained)
    before = Bank(setting(shared))
    answers = before._answers(BASE_NAME)
    monkeypatch.setattr(bank, "__version__", "0.0.0")
    after = Bank(setting(shared))
    assert {one.trained_now for one in before.adapters.values()} == {False}
    assert {one.trained_now for one in after.adapters.values()} == {True}
    assert after._answers(BASE_NAME) != answers


def test_how_an_answer_is_scored_and_whose_it_is_decide_it_too(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = setting(shared)
    ORACLE.run(given)
    rescored = replace(
        given,
        skills=tuple(
            replace(skill, test=tuple(replace(row, check="f1") for row in skill.test))
            for skill in given.skills
        ),
    )
    renamed = Bank(given)
    counts = answered(monkeypatch)
    ORACLE.run(rescored)
    assert counts == [len(given.test_rows)]
    asked = renamed.learner.asked
    renamed.learner.__dict__["asked"] = replace(asked, skills=("other",) * len(asked))
    found = renamed.answer(renamed.pinned(["letters"] * len(asked)))
    assert {row.skill for row in found} == {"other"}


def _not_trained(self: Bank, *_: Any) -> dict[str, Any]:
    return {"tokens": 0, "seconds": 0.0, "loss": 0.0}


def test_streams_of_the_same_rows_share_an_adapter_if_they_come_in_one_order(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {
        kind: {one.folder for one in Bank(setting(shared, kind)).adapters.values()}
        for kind in ("hard", "blurred", "mixed")
    }
    monkeypatch.setattr(lora_learner, "train_expert", None)
    assert {kind: len(found) for kind, found in places.items()} == dict.fromkeys(places, 3)
    assert places["hard"] == {one.folder for one in Bank(setting(shared)).adapters.values()}


@pytest.mark.parametrize("count", [2, 3, 6])
def test_shuffled_ids_are_nobody_s_own_and_everybody_s_once(count: int) -> None:
    names = [f"skill {n}" for n in range(count)]
    seen: Counter[tuple[str, ...]] = Counter()
    for seed in range(20):
        found = derangement(names, seed)
        assert sorted(found.values()) == sorted(names)
        assert all(own != other for own, other in found.items())
        assert derangement(names, seed) == found
        seen[tuple(found.values())] += 1
    assert len(seen) > 1 or count == 2


def test_one_skill_cannot_be_shuffled() -> None:
    with pytest.raises(DataError, match="one skill alone"):
        derangement(["a"], 0)


def test_a_chosen_row_notes_the_skill_and_the_bank_s_cost(shared: Path) -> None:
    given = setting(shared)
    result = Chosen("bank-centroid", "", centroid).run(given)
    assert {row.expert for row in result.last.rows} <= {skill.name for skill in given.skills}
    size = Bank(given).learner.experts.parameter_count("expert_1")
    assert (result.parameters, result.parameters_in_use) == (3 * size, size)
    assert result.base_loss is not None
    assert (result.last.after, result.last.skill) == (3, "signs")


def test_features_are_those_the_router_is_fitted_on_and_computed_once(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = setting(shared)
    given = replace(given, learn=given.learn.model_copy(update={"validation_fraction": 0.4}))
    own = Bank(given)
    found = own.features("letters")
    train, watched = sides(own.rows["letters"], given.learn.validation_fraction)
    assert watched != own.rows["letters"], "some validate"
    rows = own.learner.encode(train)
    assert torch.allclose(found, rows.features, atol=1e-5)
    monkeypatch.setattr(Bank, "_features", None)
    assert torch.equal(own.features("letters"), found)


def test_our_router_over_the_bank_is_fitted_on_its_rows_and_on_what_the_base_writes(
    base_folder: Path, tmp_path: Path
) -> None:
    of = skills(2, train=32)
    load = partial(load_base, str(base_folder), device="cpu", dtype="fp32")
    given = setting(
        tmp_path, skills=of, stream=STREAMS["hard"](of, rows=32, batch=16), base=load,
        base_name=str(base_folder), device="cpu", dtype="fp32", own_prompts=32,
    )  # fmt: skip
    result = OurRouter().run(given)
    assert [row.expert for row in result.last.rows].count("letters") >= 3
    assert all(0 < (row.confidence or 0) <= 1 for row in result.last.rows)
    bank_ = Bank(given)
    router = fitted_router(bank_, given, own_features(given))
    assert router.table.has_none
    assert set(router.maturity.values()) == {1.0}
    routing = router(bank_.test_features)
    losses = answer_losses(bank_.learner.model, bank_.learner.asked.rows, gates=routing)
    assert [row.loss for row in result.last.rows] == pytest.approx(losses.total.tolist(), abs=1e-3)
    assert result.base_loss is not None
