"""Laws of the ranking."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dylora_moe.foundation.statistics import FeatureStatistics, SharedScatter, stack_means
from dylora_moe.skills.ranking import Ranking

from .builders import cluster


def plain(groups: list[Tensor], point: Tensor, shrinkage: float) -> Tensor:
    """Mahalanobis distances under the shrunk correlation of all rows."""
    statistics = [FeatureStatistics.from_features(rows) for rows in groups]
    shared = SharedScatter.of(statistics, groups[0].shape[1])
    apart = (stack_means(statistics) - point.double()) / shared.std()
    solved = torch.linalg.solve(shared.correlation(shrinkage), apart.T).T
    squares: Tensor = (apart * solved).sum(1) / groups[0].shape[1]
    return squares.sqrt()


def ranking(groups: list[Tensor], most: int = 512) -> Ranking:
    means = stack_means([FeatureStatistics.from_features(rows) for rows in groups])
    return Ranking.of(means, groups, [len(rows) for rows in groups], 0.1, most)


@pytest.mark.parametrize(("n", "d"), [(20, 150), (80, 24)])
def test_with_every_row_in_the_sample_it_is_the_plain_distance(n: int, d: int) -> None:
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(1))
    groups = [cluster(index, n, d=d) @ mix for index in range(5)]
    point = groups[0][:7].double().mean(0)
    found = ranking(groups).distances(point)
    torch.testing.assert_close(found, plain(groups, point, 0.1), rtol=1e-3, atol=1e-4)


def test_a_sample_finds_the_nearest_as_all_rows_do() -> None:
    """On features of different variance that go together, where plain distance does not."""
    generator = torch.Generator().manual_seed(3)
    d, hits = 200, {"sample": 0, "all": 0, "euclid": 0}
    mix = torch.randn(d, d, generator=generator) * (10 * torch.arange(1, d + 1)[:, None] ** -1.0)
    shifts = 0.3 * torch.randn(30, d, generator=generator)
    groups = [torch.randn(80, d, generator=generator) @ mix + shift for shift in shifts]
    means = torch.stack([rows.double().mean(0) for rows in groups])
    ranked = ranking(groups)
    assert len(ranked.within.rows) <= 512
    for index, shift in enumerate(shifts):
        point = (torch.randn(64, d, generator=generator) @ mix + shift).double().mean(0)
        ways = {
            "sample": ranked.distances(point),
            "all": plain(groups, point, 0.1),
            "euclid": (means - point).square().sum(1),
        }
        for way, distances in ways.items():
            hits[way] += index in distances.argsort()[:3].tolist()
    assert hits["sample"] >= hits["all"] - 1
    assert hits["all"] > hits["euclid"] + 10, hits


def test_of_more_skills_than_rows_allowed_some_stand_for_all() -> None:
    groups = [cluster(index, 3) for index in range(50)]
    ranked = ranking(groups, most=20)
    assert len(ranked.within.rows) == 17
    assert int(ranked.distances(cluster(31, 40, seed=4).double().mean(0)).argmin()) == 31


def test_skills_of_one_row_have_no_scatter_and_are_ranked() -> None:
    groups = [cluster(index, 1) for index in range(3)]
    assert int(ranking(groups).distances(groups[1][0].double()).argmin()) == 1
