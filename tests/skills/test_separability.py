"""Laws of the classifier two-sample test."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from dylora_moe.errors import DataError
from dylora_moe.skills.separability import FoldScores, auc, auc_interval, separability

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


def test_the_scores_are_those_of_the_primal_form() -> None:
    rows = torch.cat([cluster(0, 12), cluster(1, 9), cluster(0, 5, seed=4)]).double()
    sides = torch.cat([torch.zeros(12), torch.ones(9), torch.zeros(5)]).long()
    held_out, shrinkage = torch.arange(26) >= 21, 0.3
    train, labels, test = rows[:21], sides[:21], rows[21:]
    means = torch.stack([train[labels == side].mean(0) for side in (0, 1)])
    centred = train - means[labels]
    std = (centred.square().sum(0) / 19).sqrt()
    corr = (1 - shrinkage) * (centred / std).T @ (centred / std) / 19
    corr += shrinkage * torch.eye(24, dtype=torch.float64)
    weight = torch.linalg.solve(corr, (means[1] - means[0]) / std)
    expected = (test - means.mean(0)) / std @ weight
    centred = FoldScores(rows, sides)
    torch.testing.assert_close(centred.scores(held_out, shrinkage), expected)
    plain = centred.scores(held_out, 1.0)
    torch.testing.assert_close(centred.scores(held_out, 1 - 1e-9), plain)


def plain_scores(train: Tensor, labels: Tensor, test: Tensor, shrinkage: float) -> Tensor:
    """The dual form as it is written down, every fold by itself."""
    means = torch.stack([train[labels == side].mean(0) for side in (0, 1)])
    centred = train - means[labels]
    freedom = max(1, len(train) - 2)
    variance = centred.square().sum(0) / freedom
    std = torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()
    centred = centred / std
    delta = (means[1] - means[0]) / std
    points = (test - means.mean(0)) / std
    ridge = shrinkage * freedom / (1 - shrinkage)
    gram = centred @ centred.T + ridge * torch.eye(len(train), dtype=torch.float64)
    return points @ (delta - centred.T @ torch.linalg.solve(gram, centred @ delta)) / shrinkage


@pytest.mark.parametrize("seed", range(6))
def test_what_the_folds_share_changes_no_score(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, m, d = (int(torch.randint(4, 90, (1,), generator=generator)) for _ in range(3))
    scale = 3 * torch.rand(d, generator=generator)
    rows = (torch.randn(n + m, d, generator=generator) * scale + 50).double()
    rows[:, 0] = 1.25
    sides = (torch.arange(n + m) >= n).long()
    test = torch.rand(n + m, generator=generator) < 0.2
    test[:2], test[-2:] = False, False
    test[2] = True
    expected = plain_scores(rows[~test], sides[~test], rows[test], 0.1)
    found = FoldScores(rows, sides).scores(test, 0.1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


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


def test_ties_count_half() -> None:
    assert auc(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])) == 0.75


def test_large_sides_are_sampled_down() -> None:
    new, old = cluster(1, 300), cluster(0, 300, seed=1)
    found = separability(new, old, per_side=20)
    assert found.high - found.low > separability(new, old, per_side=300).high - 0.999


def test_a_side_of_one_row_is_refused() -> None:
    with pytest.raises(DataError, match="two rows"):
        separability(cluster(0, 1), cluster(0))
