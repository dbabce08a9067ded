"""Laws of clusters of whole rows, and of their vote on what the screen said of single inputs."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from dylora_moe.errors import ConfigError
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.skills import clustering
from dylora_moe.skills.clustering import clusters, directions, medoids, voted
from dylora_moe.skills.screening import Screened

D = 32


def foreign() -> FeatureStatistics:
    noise = torch.randn(100, D, generator=torch.Generator().manual_seed(5))
    return FeatureStatistics.from_features(10 + noise)


def rows(index: int, n: int = 30) -> Tensor:
    """Rows of a skill, in its own direction from what is foreign."""
    centre = 2 * torch.randn(D, generator=torch.Generator().manual_seed(100 + index))
    return 10 + centre + torch.randn(n, D, generator=torch.Generator().manual_seed(index))


def mixed(*skills: int, n: int = 30) -> tuple[Tensor, Tensor]:
    """Rows of skills in random order, and whose each is."""
    owners = torch.tensor([skill for skill in skills for _ in range(n)])
    order = torch.randperm(len(owners), generator=torch.Generator().manual_seed(9))
    return torch.cat([rows(skill, n) for skill in skills])[order], owners[order]


@pytest.mark.parametrize("skills", [(0,), (0, 1), (0, 1, 2, 3, 4, 5)])
def test_there_are_as_many_clusters_as_skills_and_each_is_of_one(skills: tuple[int, ...]) -> None:
    features, owners = mixed(*skills)
    found = clusters(features, foreign())
    assert int(found.max()) + 1 == len(skills)
    for cluster in range(len(skills)):
        assert len(owners[found == cluster].unique()) == 1


def test_a_loose_skill_is_one_cluster_beside_a_tight_one() -> None:
    noise = torch.randn(60, D, generator=torch.Generator().manual_seed(4))
    centres = 2 * torch.randn(2, D, generator=torch.Generator().manual_seed(6))
    tight, loose = 10 + centres[0] + 0.3 * noise[:30], 10 + centres[1] + 2.6 * noise[30:]
    found = clusters(torch.cat([tight, loose]), foreign())
    assert found.tolist() == [0] * 30 + [1] * 30


def test_rows_without_likes_are_clusters_of_their_own() -> None:
    scattered = 10 + 2 * torch.randn(12, 400, generator=torch.Generator().manual_seed(0))
    near = FeatureStatistics.from_features(
        10 + torch.randn(50, 400, generator=torch.Generator().manual_seed(1))
    )
    assert len(clusters(scattered, near).unique()) == 12


def test_the_order_of_the_rows_changes_nothing_but_the_numbers() -> None:
    features, _ = mixed(0, 1, 2)
    found = clusters(features, foreign())
    back = clusters(features.flip(0), foreign()).flip(0)
    assert len(Counter(zip(found.tolist(), back.tolist(), strict=True))) == 3


def test_numbers_follow_the_first_row_of_each_cluster() -> None:
    features, _ = mixed(0, 1, 2)
    found = clusters(features, foreign()).tolist()
    assert list(dict.fromkeys(found)) == [0, 1, 2]


def test_a_higher_cosine_never_joins_what_a_lower_one_keeps_apart() -> None:
    features, _ = mixed(0, 1, 2, 3)
    fine, coarse = (clusters(features, foreign(), alike=a) for a in (0.9, 0.2))
    assert len(fine.unique()) > len(coarse.unique())
    for cluster in fine.unique():
        assert len(coarse[fine == cluster].unique()) == 1


def test_no_row_and_one_row_are_clustered_too() -> None:
    assert clusters(rows(0, 0), foreign()).tolist() == []
    assert clusters(rows(0, 1), foreign()).tolist() == [0]


def test_too_many_rows_or_no_cosine_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        clusters(rows(0), foreign(), alike=1.0)
    monkeypatch.setattr(clustering, "MOST_ROWS", 20)
    with pytest.raises(ConfigError, match="at most 20"):
        clusters(rows(0), foreign())


def screened(strange: list[bool], nearest: list[int]) -> Screened:
    return Screened(torch.zeros(len(strange)), torch.tensor(nearest), torch.tensor(strange))


def test_a_cluster_is_as_most_of_its_rows_are() -> None:
    said = screened([True, True, False, False, False, True], [4, 4, 1, 2, 2, 3])
    found = voted(said, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert found.strange.tolist() == [True, True, True, False, False, False]
    assert found.nearest.tolist()[3:] == [2, 2, 2]


def test_a_row_alone_stands_by_itself_and_a_tie_is_not_strange() -> None:
    said = screened([True, False, True, False], [0, 1, 2, 2])
    found = voted(said, torch.tensor([0, 1, 2, 2]))
    assert found.strange.tolist() == [True, False, False, False]


def test_strange_rows_have_no_say_in_which_skill_a_cluster_is_of() -> None:
    said = screened([True, True, False, False, False], [7, 7, 8, 8, 9])
    found = voted(said, torch.zeros(5, dtype=torch.int64))
    assert found.nearest.tolist() == [8] * 5


def test_medoids_are_the_middle_of_a_cluster_then_what_it_leaves_out() -> None:
    cluster = torch.cat([rows(0, 30), rows(1, 6)])
    first, second, third = medoids(cluster, foreign(), 3).tolist()
    assert first < 30 <= second
    points = directions(cluster, foreign())
    assert int((points @ points.T).sum(1).argmax()) == first
    assert len({first, second, third}) == 3
    assert medoids(rows(0, 2), foreign(), 5).tolist() in ([0, 1], [1, 0])
