"""Laws of the scatter within skills: the dual form is the primal one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dylora_moe.skills.within import Within

SIZES = pytest.mark.parametrize(("n", "d"), [(12, 60), (60, 12), (1, 5)])


def made(n: int, d: int) -> tuple[Within, Tensor, Tensor]:
    """The scatter, its matrix `A`, and points."""
    generator = torch.Generator().manual_seed(n)
    rows = torch.randn(n, d, generator=generator)
    within = Within.of(rows, n - 1, 0.2)
    matrix = rows.double().T @ rows.double() + within.ridge * torch.eye(d, dtype=torch.float64)
    return within, matrix, torch.randn(7, d, generator=generator)


@SIZES
def test_a_square_is_that_under_the_matrix_as_wide_as_the_features(n: int, d: int) -> None:
    within, matrix, points = made(n, d)
    solved = torch.linalg.solve(matrix / within.ridge, points.double().T).T
    expected = (points.double() * solved).sum(1)
    torch.testing.assert_close(within.squared(points), expected, rtol=1e-4, atol=1e-5)


@SIZES
def test_what_is_pulled_of_a_difference_is_the_difference_of_what_is_pulled(n: int, d: int) -> None:
    within, _, points = made(n, d)
    apart = points[:3] - points[3:6]
    known = within.pulled(points[:3]) - within.pulled(points[3:6])
    torch.testing.assert_close(
        within.squared(apart, known), within.squared(apart), rtol=1e-4, atol=1e-5
    )


@SIZES
def test_leverages_are_those_of_the_rows_under_the_matrix(n: int, d: int) -> None:
    within, matrix, _ = made(n, d)
    rows = within.rows.double()
    expected = (rows * torch.linalg.solve(matrix, rows.T).T).sum(1)
    torch.testing.assert_close(within.leverages, expected, rtol=1e-4, atol=1e-5)
    assert 0 < float(expected.min()) <= float(expected.max()) < 1


def test_the_ridge_is_the_shrinkages_share_of_the_degrees_of_freedom() -> None:
    within, _, _ = made(12, 60)
    assert within.ridge == pytest.approx(0.2 / 0.8 * 11)
    assert Within.of(torch.zeros(1, 3), 0, 0.5).ridge == 1.0
