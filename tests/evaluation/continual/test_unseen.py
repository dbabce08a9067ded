"""Laws of the AUROC of single inputs."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from dylora_moe.errors import DataError
from dylora_moe.evaluation.continual.unseen import unseen_auroc
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.scoring.detection import auroc
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.screening import screen_of

D = 20
NAMES = ("one", "two", "three", "four")


def rows(name: str, n: int, seed: int, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    centre = 10 + spread * torch.randn(D, generator=generator)
    return centre + torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def sides(spread: float = 3.0) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    train = {name: rows(name, 60, 1, spread) for name in NAMES}
    test = {name: rows(name, 30, 2, spread) for name in NAMES}
    return train, test, rows("own", 60, 3, spread=0.0)


def test_skills_that_are_told_apart_give_one_and_the_same_skill_twice_a_half() -> None:
    train, test, own = sides()
    apart = unseen_auroc(train, test, own)
    assert apart.learned == 3
    assert apart.unseen.value > 0.99
    twice = {"one": train["one"], "again": rows("one", 60, 4)}
    tests = {"one": test["one"], "again": rows("one", 30, 5)}
    assert unseen_auroc(twice, tests, own).each["again"].value == pytest.approx(0.5, abs=0.15)


def test_the_skill_left_out_has_no_part_in_the_screen() -> None:
    train, test, own = sides(spread=0.5)
    # Its scatter is of another size, so that it would be noticed among the others'.
    train["one"] = train["one"].mean(0) + 4 * (train["one"] - train["one"].mean(0))
    found = unseen_auroc(train, test, own)
    library = SkillLibrary()
    for name in NAMES[1:]:
        library.add_skill(name, train[name], name)
    screen = screen_of(library, FeatureStatistics.from_features(own))
    known = [score for name in NAMES[1:] for score in screen(test[name]).scores.tolist()]
    expected = auroc(screen(test["one"]).scores.tolist(), known)
    assert 0.5 < expected < 1
    assert found.each["one"].value == pytest.approx(expected, abs=1e-6)


def test_prompts_beside_a_skill_are_held_against_that_skill_alone() -> None:
    train, test, own = sides()
    found = unseen_auroc(train, test, own, out_of_scope={"one": rows("five", 40, 6)})
    assert found.out_of_scope["one"].value > 0.95
    same = unseen_auroc(train, test, own, out_of_scope={"one": rows("one", 400, 7)})
    assert same.intervals["out of scope"].value == pytest.approx(0.5, abs=0.15)
    assert "out of scope" not in unseen_auroc(train, test, own).intervals


def test_the_mean_lies_between_the_skills_and_its_interval_holds_it() -> None:
    train, test, own = sides()
    found = unseen_auroc(train, test, own)
    values = [one.value for one in found.each.values()]
    assert min(values) <= found.unseen.value <= max(values)
    assert found.unseen.low <= found.unseen.value <= found.unseen.high


def test_a_result_is_plain_json() -> None:
    train, test, own = sides()
    document = unseen_auroc(train, test, own, out_of_scope={"one": test["two"]}).document()
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_other_skills_to_test_than_to_learn_are_refused() -> None:
    train, test, own = sides()
    with pytest.raises(DataError, match="must be the same"):
        unseen_auroc(train, {"one": test["one"]}, own)
