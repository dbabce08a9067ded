"""Choosers are what their papers say, on features where the right answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dylora_moe.evaluation.continual.arms.choosers import (
    RecursiveLeastSquares,
    Standard,
    centroid,
    learned_keys,
    linear,
    recursive_least_squares,
)

METHODS = {
    "centroid": centroid,
    "learned_keys": learned_keys,
    "recursive_least_squares": recursive_least_squares,
    "linear": linear,
}


def clouds(count: int, seed: int, spread: float = 0.3) -> dict[str, Tensor]:
    """Rows around three points far from each other, of places that vary unlike each other."""
    draw = torch.Generator().manual_seed(seed)
    centres = 3 * torch.eye(3, 6) + 5
    scale = torch.tensor([1.0, 1.0, 1.0, 4.0, 0.1, 1.0])
    return {
        name: (centre + spread * torch.randn(count, 6, generator=draw)) * scale
        for name, centre in zip(("a", "b", "c"), centres, strict=True)
    }


@pytest.mark.parametrize("name", METHODS)
def test_skills_that_lie_apart_are_told_apart(name: str) -> None:
    test = torch.cat(list(clouds(5, 1).values()))
    choice = METHODS[name](clouds(30, 0), test, 0)
    assert choice.named == ["a"] * 5 + ["b"] * 5 + ["c"] * 5
    assert choice.decided[0][0] == "a"


def test_only_the_gate_with_a_softmax_knows_probabilities() -> None:
    test = torch.cat(list(clouds(5, 1).values()))
    for name, method in METHODS.items():
        probability = method(clouds(30, 0), test, 0).probability
        assert (probability is not None) == (name == "linear")
    found = linear(clouds(30, 0), test).probability
    assert found is not None
    assert bool((found > 0.9).all())
    assert bool((found <= 1).all())


def test_recursive_least_squares_is_ridge_regression_on_all_rows_it_took() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 7, generator=draw, dtype=torch.float64)
    labels = torch.arange(40) // 15
    solver = RecursiveLeastSquares(7, ridge=2.0)
    for piece in (slice(0, 9), slice(9, 10), slice(10, 31), slice(31, 40)):
        solver.take(rows[piece], labels[piece])
    x = torch.cat([rows, torch.ones(40, 1, dtype=torch.float64)], 1)
    y = functional.one_hot(labels, 3).double()
    closed = torch.linalg.solve(x.T @ x + 2.0 * torch.eye(8, dtype=torch.float64), x.T @ y)
    assert torch.allclose(solver.weights, closed, atol=1e-9)
    assert torch.allclose(solver.scores(rows), x @ closed, atol=1e-9)


def test_a_skill_that_comes_later_changes_nothing_of_what_was_right_before() -> None:
    """The order of the skills is that of the columns, and no pass over old rows is needed."""
    train = clouds(30, 0)
    solver = RecursiveLeastSquares(6)
    for label, rows in enumerate(train.values()):
        solver.take(rows, torch.full((len(rows),), label))
        assert solver.weights.shape == (7, label + 1)
    best = solver.scores(torch.cat(list(train.values()))).argmax(-1)
    assert best.tolist() == [0] * 30 + [1] * 30 + [2] * 30


def test_standard_features_have_mean_zero_and_deviation_one_and_survive_a_constant_place() -> None:
    rows = torch.cat(list(clouds(30, 0).values()))
    rows[:, 5] = 7.0
    found = Standard.of(rows)(rows)
    assert torch.allclose(found.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(found[:, :5].std(0, correction=0), torch.ones(5, dtype=torch.float64))
    assert not found[:, 5].any()


def test_a_centroid_is_the_nearest_where_every_place_counts_the_same() -> None:
    """Without standardising, the place that varies most would decide alone."""
    train = {
        "a": torch.tensor([[0.0, 100.0], [0.0, -100.0], [0.1, 50.0]]),
        "b": torch.tensor([[1.0, 90.0], [1.0, -90.0], [1.1, -60.0]]),
    }
    near_b = torch.tensor([[1.0, 16.0]])
    assert centroid(train, near_b).named == ["b"]
    plain = torch.stack([rows.mean(0) for rows in train.values()])
    assert int(torch.cdist(near_b, plain).argmin()) == 0


def test_a_learned_key_points_where_its_skill_s_features_do() -> None:
    """The key that minimises the mean of 1 - cosine is the mean of the unit rows."""
    train = clouds(30, 0)
    test = torch.stack([functional.normalize(rows, dim=-1).mean(0) for rows in train.values()])
    again = learned_keys(train, test, seed=5)
    assert again.named == ["a", "b", "c"]
