"""Laws of the distance and of the test that goes by it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dylora_moe.scoring.detection import auroc
from dylora_moe.skills import mahalanobis
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.mahalanobis import Mahalanobis, WithinCovariance

from .builders import cluster, library


def plain(groups: list[Tensor], mean: Tensor, std: Tensor, ridge: float, point: Tensor) -> Tensor:
    """`(x - mean)^T (r I + S)^-1 (x - mean)`, with S the scatter within the groups."""
    centred = torch.cat([group - group.mean(0) for group in groups]) / std
    matrix = centred.T @ centred + ridge * torch.eye(len(std), dtype=torch.float64)
    apart = (point - mean) / std
    return apart @ torch.linalg.solve(matrix, apart)


def groups_of(n: int, d: int) -> list[Tensor]:
    """Three groups whose features go together."""
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(1)).double() / d**0.5
    return [cluster(index, n + index, d=d).double() @ mix for index in range(3)]


SIZES = pytest.mark.parametrize(("n", "d"), [(12, 60), (60, 12)])


@SIZES
def test_a_distance_is_the_plain_one_with_more_features_than_rows_and_with_fewer(
    n: int, d: int
) -> None:
    groups = groups_of(n, d)
    std = 1 + torch.rand(d, dtype=torch.float64)
    within = WithinCovariance.of(groups, std, 0.1)
    points = groups_of(n, d)[1] + 0.3
    found = within.squared(points, 1)
    expected = [
        plain(groups, groups[1].mean(0), std, within.within.ridge, point) for point in points
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-5)


@SIZES
def test_a_row_left_out_has_no_part_in_mean_and_covariance(n: int, d: int) -> None:
    groups = groups_of(n, d)
    std = 1 + torch.rand(d, dtype=torch.float64)
    within = WithinCovariance.of(groups, std, 0.1)
    for group, rows in enumerate(groups):
        expected = []
        for index, row in enumerate(rows):
            rest = torch.cat([rows[:index], rows[index + 1 :]])
            others = [*groups[:group], rest, *groups[group + 1 :]]
            expected.append(plain(others, rest.mean(0), std, within.within.ridge, row))
        torch.testing.assert_close(
            within.left_out(group), torch.stack(expected), rtol=1e-3, atol=1e-5
        )


def test_with_more_features_than_rows_a_skills_unseen_rows_lie_as_its_own_do() -> None:
    """Not left out, its own rows would lie far nearer, and every return would be novel."""
    pool, values = SkillLibrary(), []
    for index in range(3):
        pool.add_skill(f"skill_{index}", cluster(index, 40, d=400), f"expert_{index}")
    for index in range(3):
        measured = Mahalanobis().measure(cluster(index, 40, seed=5, d=400), pool)
        assert measured.separability is not None
        assert measured.separability.high < 0.8
        values.append(measured.separability.value)
        own = pool[f"skill_{index}"].features.double()
        std = torch.ones(400, dtype=torch.float64)
        within = WithinCovariance.of([own], std, 0.1)
        unseen = within.squared(cluster(index, 40, seed=5, d=400).double(), 0)
        assert auroc(unseen.tolist(), within.squared(own, 0).tolist()) > 0.95
    assert 0.4 < sum(values) / 3 < 0.6


def test_neither_the_order_of_rows_nor_that_of_skills_changes_the_measurement() -> None:
    rows = cluster(1, 48, seed=5) + 0.3
    ordered = Mahalanobis().measure(rows, library(5))
    other = SkillLibrary()
    for index in (3, 0, 4, 2, 1):
        other.add_skill(f"skill_{index}", cluster(index), f"expert_{index}")
    shuffled = Mahalanobis().measure(rows.flip(0), other)
    assert ordered.separability is not None
    assert shuffled.separability is not None
    assert shuffled.separability.value == pytest.approx(ordered.separability.value, abs=1e-3)
    assert [name for name, _ in shuffled.nearest] == [name for name, _ in ordered.nearest]


def test_the_units_of_the_features_do_not_matter() -> None:
    units = torch.logspace(-3, 3, 24)
    rows, scaled = cluster(1, 48, seed=5) + 0.3, SkillLibrary()
    for index in range(3):
        scaled.add_skill(f"skill_{index}", cluster(index) * units, f"expert_{index}")
    plainly = Mahalanobis().measure(rows, library()).separability
    in_units = Mahalanobis().measure(rows * units, scaled).separability
    assert plainly is not None
    assert in_units is not None
    assert in_units.value == pytest.approx(plainly.value, abs=1e-3)


def test_the_farther_off_the_more_separable() -> None:
    along = torch.ones(24)
    values = []
    for far in (0.0, 0.3, 0.6, 5.0):
        measured = Mahalanobis().measure(cluster(1, 64, seed=5) + far * along, library())
        assert measured.separability is not None
        values.append(measured.separability.value)
    assert values == sorted(values)
    assert values[-1] == 1.0


def test_the_nearest_counts_and_the_name_is_the_callers() -> None:
    test = Mahalanobis(name="gradient-mahalanobis")
    measured = test.measure(cluster(1, 64, seed=5), library(6))
    assert measured.separability is not None
    assert measured.nearest[0] == ("skill_1", measured.separability.value)
    assert len(measured.nearest) == 3
    assert test.verdict(measured).detector == "gradient-mahalanobis"


def test_a_wide_skill_does_not_take_the_rows_of_a_narrow_one() -> None:
    """Though they lie nearer to its mean than its own rows do."""
    pool, middle = SkillLibrary(), cluster(0).mean(0)
    pool.add_skill("wide", middle + 6 * (cluster(1) - cluster(1).mean(0)), "expert_0")
    pool.add_skill("narrow", cluster(2), "expert_1")
    measured = Mahalanobis().measure(cluster(2, 64, seed=5), pool)
    assert measured.nearest[0][0] == "narrow"
    assert measured.nearest[0][1] > measured.nearest[1][1]


@pytest.mark.parametrize("skills", [1, 3, 4, 40, 400])
def test_however_many_skills_the_covariance_is_of_some_hundred_rows(
    skills: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[list[Tensor]] = []

    def noted(groups: list[Tensor], std: Tensor, shrinkage: float) -> WithinCovariance:
        taken.append(groups)
        return made(groups, std, shrinkage)

    made = WithinCovariance.of
    pool = SkillLibrary()
    for index in range(skills):
        pool.add_skill(f"skill_{index}", cluster(index, 150), f"expert_{index}")
    monkeypatch.setattr(WithinCovariance, "of", noted)
    assert not Mahalanobis().is_novel(cluster(0, 64, seed=5), pool)
    sizes = [len(group) for group in taken[0]]
    tested = min(3, skills)
    assert sizes[:tested] == [mahalanobis.PER_SKILL] * tested
    assert sum(sizes) <= mahalanobis.MOST_ROWS
    assert len(sizes) >= min(skills, 50)
    assert min(sizes) >= 2


def test_skills_of_one_row_are_compared_with_by_nobody() -> None:
    pool = SkillLibrary()
    pool.add_skill("one", cluster(0, 1), "expert_0")
    assert Mahalanobis().measure(cluster(1, 64), pool).separability is None
    pool.add_skill("many", cluster(1), "expert_1")
    measured = Mahalanobis().measure(cluster(1, 64, seed=5), pool)
    assert [name for name, _ in measured.nearest] == ["many"]
