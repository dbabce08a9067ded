"""Laws of the sufficient statistics."""

from __future__ import annotations

import pytest
import torch

from dylora_moe.errors import ArtifactError, RoutingError
from dylora_moe.foundation import tensor_bytes
from dylora_moe.foundation.statistics import FeatureStatistics, SharedScatter


def rows(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def same(left: FeatureStatistics, right: FeatureStatistics) -> None:
    assert left.count == right.count
    torch.testing.assert_close(left.mean, right.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(left.scatter, right.scatter, rtol=1e-11, atol=1e-11)


def test_merging_equals_taking_the_statistics_of_all_rows() -> None:
    a, b = rows(7, 5, 0, 100.0), rows(3, 5, 1)
    merged = FeatureStatistics.from_features(a).merge(FeatureStatistics.from_features(b))
    same(merged, FeatureStatistics.from_features(torch.cat([a, b])))


def test_merging_in_any_order_is_the_same() -> None:
    a, b, c = (FeatureStatistics.from_features(rows(4, 5, seed, seed * 10)) for seed in range(3))
    same(a.merge(b).merge(c), c.merge(a).merge(b))


def test_written_and_read_statistics_are_the_same_bits() -> None:
    before = FeatureStatistics.from_features(rows(9, 5, 0))
    after = FeatureStatistics.from_tensors(before.to_tensors())
    assert after.count == before.count
    assert torch.equal(after.mean, before.mean)
    assert torch.equal(after.scatter, before.scatter)


def test_a_shared_scatter_forgets_what_is_taken_out() -> None:
    a, b = (FeatureStatistics.from_features(rows(6, 4, seed)) for seed in (0, 1))
    shared = SharedScatter.of([a, b], 4)
    shared.subtract(b)
    torch.testing.assert_close(shared.total, a.scatter)
    shared.subtract(a)
    assert not shared.total.any()
    assert shared.count == shared.classes == 0


@pytest.mark.parametrize("bad", [torch.zeros(0, 3), torch.tensor([[1.0, float("nan")]])])
def test_rows_without_statistics_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(RoutingError):
        FeatureStatistics.from_features(bad)


def test_statistics_of_another_width_are_refused() -> None:
    shared = SharedScatter(3)
    with pytest.raises(RoutingError, match="4 features"):
        shared.add(FeatureStatistics.from_features(rows(5, 4, 0)))


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b"", lambda b: b"x" * len(b)])
def test_damaged_bytes_are_refused(damage) -> None:
    body = tensor_bytes.to_bytes({"a": torch.ones(3)}, {"kind": "skill"})
    assert tensor_bytes.from_bytes(body, "skill")[1] == {"kind": "skill"}
    with pytest.raises(ArtifactError):
        tensor_bytes.from_bytes(damage(body), "skill")


def test_bytes_of_another_kind_are_refused() -> None:
    body = tensor_bytes.to_bytes({"a": torch.ones(3)}, {"kind": "skill"})
    with pytest.raises(ArtifactError, match="not a router"):
        tensor_bytes.from_bytes(body, "router")


@pytest.mark.parametrize("n", [3, 40])
def test_a_root_stands_for_its_scatter(n: int) -> None:
    x = rows(n, 12, 0, 7.0).double()
    found = FeatureStatistics.from_features(x)
    assert (found.root is None) == (n >= 12)
    centred = x - x.mean(0)
    torch.testing.assert_close(found.scatter, centred.T @ centred)
    torch.testing.assert_close(found.deviations, centred.square().sum(0))
    total = torch.ones(12, 12, dtype=torch.float64)
    found.add_to(total)
    torch.testing.assert_close(total, found.scatter + 1)
    again = FeatureStatistics.from_tensors(found.to_tensors())
    assert torch.equal(again.scatter, found.scatter)


def test_roots_merge_as_their_rows_do_and_become_a_matrix_where_that_is_smaller() -> None:
    x = rows(20, 12, 0, 7.0)
    merged = FeatureStatistics.from_features(x[:3])
    for start in range(3, 20):
        merged = merged.merge(FeatureStatistics.from_features(x[start : start + 1]))
    assert merged.root is None
    same(merged, FeatureStatistics.from_features(x))


def test_statistics_that_were_written_as_a_matrix_are_read() -> None:
    x = FeatureStatistics.from_features(rows(3, 12, 0))
    old = FeatureStatistics(x.count, x.mean, x.scatter)
    again = FeatureStatistics.from_tensors(old.to_tensors())
    same(again, x)
