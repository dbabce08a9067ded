"""Laws of the closed form."""

from __future__ import annotations

import itertools
import time

import pytest
import torch

from dylora_moe.errors import RoutingError
from dylora_moe.foundation.statistics import FeatureStatistics, SharedScatter, stack_means
from dylora_moe.routing.closed_form import WhitenedClasses, lda

from .builders import cluster


def statistics(n: int = 3) -> list[FeatureStatistics]:
    return [FeatureStatistics.from_features(cluster(i)) for i in range(n)]


def test_the_rows_are_the_same_for_any_order_of_skills() -> None:
    stats = statistics()
    probe = cluster(1, 20, seed=3)
    expected = lda(stats).logits(probe).log_softmax(-1)
    for order in itertools.permutations(range(3)):
        found = lda([stats[i] for i in order]).logits(probe).log_softmax(-1)
        torch.testing.assert_close(found, expected[:, list(order)], rtol=1e-9, atol=1e-9)


def test_the_rows_are_the_same_for_any_order_of_batches() -> None:
    first, second = cluster(0, 30, seed=1), cluster(0, 10, seed=2)
    a, b = FeatureStatistics.from_features(first), FeatureStatistics.from_features(second)
    others = statistics()[1:]
    left, right = lda([a.merge(b), *others]), lda([b.merge(a), *others])
    torch.testing.assert_close(left.weight, right.weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(left.bias, right.bias, rtol=1e-9, atol=1e-12)


def test_it_agrees_with_the_gaussian_densities_it_stands_for() -> None:
    stats, shrinkage = statistics(), 0.3
    probe = cluster(2, 9, seed=4).double()
    shared = SharedScatter.of(stats, 12)
    cov = shared.correlation(shrinkage) * shared.std() * shared.std()[:, None]
    densities = torch.stack(
        [
            torch.distributions.MultivariateNormal(s.mean, covariance_matrix=cov).log_prob(probe)
            for s in stats
        ],
        -1,
    )
    found = lda(stats, shrinkage).logits(probe)
    torch.testing.assert_close(found.log_softmax(-1), densities.log_softmax(-1))


def test_priors_shift_the_logits_by_their_logarithm() -> None:
    stats, probe = statistics(2), cluster(0, 3)
    shift = lda(stats, prior=[3.0, 1.0]).logits(probe) - lda(stats).logits(probe)
    torch.testing.assert_close(
        shift, torch.tensor([0.75, 0.25], dtype=torch.float64).log().expand(3, 2)
    )


def test_leaving_one_out_equals_refitting_without_the_row() -> None:
    parts = [cluster(i, n) for i, n in enumerate((6, 9, 5))]
    stats = [FeatureStatistics.from_features(p) for p in parts]
    rows = torch.cat(parts)
    labels = torch.cat([torch.full((len(p),), i) for i, p in enumerate(parts)])
    shared = SharedScatter.of(stats, 12)
    whitened = WhitenedClasses.of(stack_means(stats), shared)
    found = whitened.leave_one_out(rows, labels, [6, 9, 5]).log_softmax(-1)
    scale = shared.std()
    for index in range(len(rows)):
        kept = torch.arange(len(rows)) != index
        without = [
            FeatureStatistics.from_features(rows[kept & (labels == label)]) for label in range(3)
        ]
        # The same standardisation and divisor, which leaving one out keeps.
        total = SharedScatter.of(without, 12).total / scale / scale[:, None]
        cov = 0.9 * total / shared.degrees_of_freedom + 0.1 * torch.eye(12, dtype=torch.float64)
        step = (rows[index].double() - stack_means(without)) / scale
        logits = -0.5 * (step @ torch.linalg.inv(cov) * step).sum(-1)
        torch.testing.assert_close(found[index], logits.log_softmax(-1), rtol=1e-6, atol=1e-6)


def test_more_features_than_rows_are_no_obstacle() -> None:
    parts = [cluster(i, 8, d=100) for i in range(2)]
    rows = lda([FeatureStatistics.from_features(p) for p in parts])
    for label, index in enumerate(range(2)):
        probe = cluster(index, 10, d=100, seed=9)
        assert (rows.logits(probe).argmax(-1) == label).all()


def test_a_feature_that_never_varies_is_no_obstacle() -> None:
    parts = [cluster(i) for i in range(2)]
    for part in parts:
        part[:, 3] = 1.0
    assert torch.isfinite(lda([FeatureStatistics.from_features(p) for p in parts]).weight).all()


@pytest.mark.parametrize("shrinkage", [0.0, -1.0, 1.5])
def test_a_shrinkage_that_leaves_it_singular_is_refused(shrinkage: float) -> None:
    with pytest.raises(RoutingError, match="shrinkage"):
        lda(statistics(), shrinkage)


def test_no_class_and_false_priors_are_refused() -> None:
    with pytest.raises(RoutingError):
        lda([])
    with pytest.raises(RoutingError):
        lda(statistics(), prior=[1.0])


def test_a_thousand_skills_are_refitted_in_under_a_second() -> None:
    d = 576
    shared = SharedScatter(d)
    for i in range(3):
        shared.add(FeatureStatistics.from_features(cluster(i, 50, d=d)))
    means = torch.randn(1000, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shared.count, shared.classes = 50_000, 1000
    best = min(_seconds(means, shared) for _ in range(3))
    assert best < 1.0


def _seconds(means: torch.Tensor, shared: SharedScatter) -> float:
    start = time.perf_counter()
    WhitenedClasses.of(means, shared).rows()
    return time.perf_counter() - start
