"""Laws of the classifier two-sample test."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from dylora_moe.errors import ConfigError, DataError
from dylora_moe.scoring.detection import auroc
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.separability import FoldScores, auc_interval, separability

from .builders import cluster


def test_the_same_source_is_not_separable_and_another_is() -> None:
    same = separability(cluster(0, 64, seed=1), cluster(0, 64, seed=2))
    other = separability(cluster(1, 64, seed=1), cluster(0, 64, seed=2))
    assert same.high < 0.8 < other.low
    assert same.low < 0.5 < same.high


def test_it_is_the_same_for_the_same_seed_and_alike_for_others() -> None:
    new, old = cluster(0, 40, seed=1), cluster(0, 40, seed=2)
    assert separability(new, old, 3) == separability(new, old, 3)
    assert separability(new, old, 3) != separability(new, old, 4)


def test_more_features_than_rows_are_no_obstacle_and_take_little_time() -> None:
    new, old = (cluster(0, 64, seed=s, d=2304) for s in (1, 2))
    separability(new, old)
    start = time.perf_counter()
    found = separability(new, old)
    assert time.perf_counter() - start < 1.0
    assert found.high < 0.8


def plain_scores(rows: Tensor, labels: Tensor, fold: Tensor, ridge: float) -> Tensor:
    """The formula as it is written down, in the features' space, every fold by itself."""
    rows = rows.double()
    std = rows.var(0, correction=0).sqrt()
    rows = (rows - rows.mean(0)) / torch.where(std > 1e-6, std, 1.0)
    found = torch.empty(len(rows), dtype=torch.float64)
    for index in fold.unique():
        train, sides = rows[fold != index], labels[fold != index]
        means = torch.stack([train[sides == side].mean(0) for side in (0, 1)])
        centred = train - means[sides]
        within = centred.T @ centred + ridge * torch.eye(rows.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(within, means[1] - means[0])
        found[fold == index] = (rows[fold == index] - means.mean(0)) @ weight
    return found


@pytest.mark.parametrize("seed", range(6))
def test_the_scores_are_those_of_the_primal_form_fold_by_fold(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, m, d = (int(torch.randint(9, 90, (1,), generator=generator)) for _ in range(3))
    scale = 3 * torch.rand(d, generator=generator)
    rows = torch.randn(n + m, d, generator=generator) * scale + 50
    rows[:n] += 0.5 * scale * torch.randn(d, generator=generator)
    rows[:, 0] = 1.3
    labels = (torch.arange(n + m) < n).long()
    fold = torch.cat([torch.randperm(size, generator=generator) % 4 for size in (n, m)])
    found = FoldScores(rows, labels, 3.0).scores(fold)
    expected = plain_scores(rows, labels, fold, 3.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_auc_is_that_of_the_plain_formula(share: float) -> None:
    new = torch.cat([cluster(1, int(64 * share), d=600), cluster(0, 64 - int(64 * share), d=600)])
    old = cluster(0, 205, seed=2, d=600)
    generator = torch.Generator().manual_seed(0)
    rows = torch.cat([old, new])
    labels = (torch.arange(269) >= 205).long()
    values = []
    for _ in range(3):
        fold = torch.cat([torch.randperm(size, generator=generator) % 5 for size in (205, 64)])
        scores = plain_scores(rows, labels, fold, (269 * 0.8 - 2) / 9)
        values.append(auroc(scores[205:].tolist(), scores[:205].tolist()))
    assert separability(new, old).value == pytest.approx(sum(values) / 3, abs=1e-4)


def test_two_sets_of_one_source_get_a_half() -> None:
    """Also with few rows of many features, where a scale that knew the sides would tell of them."""
    found = [
        separability(cluster(0, 16, seed=2 * s, d=500), cluster(0, 16, seed=2 * s + 1, d=500)).value
        for s in range(200)
    ]
    # The standard error is 0.009.
    assert sum(found) / len(found) == pytest.approx(0.49, abs=0.025)


def test_rows_that_are_all_alike_are_not_told_apart() -> None:
    same = torch.full((60, 24), 0.1)
    assert separability(same[:20], same).value == pytest.approx(0.5, abs=0.1)


def test_fewer_examples_give_a_wider_interval() -> None:
    widths = []
    for n in (8, 32, 128):
        found = separability(cluster(1, n, seed=1), cluster(0, n, seed=2))
        assert found.low <= found.value <= found.high
        widths.append(found.high - found.low)
    assert widths[0] > widths[1] > widths[2] > 0


def test_the_interval_of_a_perfect_separation_has_a_width() -> None:
    few, many = auc_interval(1.0, 16, 16), auc_interval(1.0, 256, 256)
    assert few.high == many.high == 1.0
    assert few.low < many.low < 1.0


def test_the_interval_is_symmetric_in_the_sides() -> None:
    up, down = auc_interval(0.7, 40, 60), auc_interval(0.3, 60, 40)
    assert up.low == pytest.approx(1 - down.high, abs=1e-9)
    assert up.high == pytest.approx(1 - down.low, abs=1e-9)


def test_the_interval_holds_the_expected_auc_about_as_often_as_it_says() -> None:
    found = [
        separability(cluster(0, 40, seed=2 * s), cluster(0, 40, seed=2 * s + 1), repeats=2)
        for s in range(60)
    ]
    assert sum(i.low <= 0.5 <= i.high for i in found) >= 54


def test_large_sides_are_sampled_down() -> None:
    new, old = cluster(1, 300), cluster(0, 300, seed=1)
    found = separability(new, old, per_side=20)
    assert found.high - found.low > separability(new, old, per_side=300).high - 0.999


def test_a_side_of_one_row_is_refused() -> None:
    with pytest.raises(DataError, match="two rows"):
        separability(cluster(0, 1), cluster(0))


@pytest.mark.parametrize("shrinkage", [0.0, 1.0, -0.1])
def test_a_shrinkage_that_leaves_nothing_is_refused(shrinkage: float) -> None:
    rows = torch.randn(8, 4)
    with pytest.raises(ConfigError, match="shrinkage is"):
        separability(rows, rows + 1, shrinkage=shrinkage)
    with pytest.raises(ConfigError, match="shrinkage is"):
        SkillLibrary(shrinkage=shrinkage)
