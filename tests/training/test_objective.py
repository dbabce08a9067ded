from __future__ import annotations

import pytest
import torch

from dylora_moe.errors import TrainingError
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.training.objective import (
    Rehearsal,
    RehearsalRows,
    RouterLossWeights,
    dense_weights,
    mixture_gates,
    router_losses,
)
from tests.training.setting import OTHER, OWN

WIDTH = 6


def fitted() -> tuple[DynamicHybridRouter, dict[str, torch.Tensor]]:
    """Two experts, the first with two skills, near enough that the gate is unsure."""
    generator = torch.Generator().manual_seed(0)
    features = {
        skill: torch.randn(40, WIDTH, generator=generator) + shift
        for skill, shift in [("a", 0.0), ("b", 0.3), ("c", 0.6)]
    }
    router = DynamicHybridRouter(WIDTH)
    for skill, expert in [("a", OTHER), ("b", OWN), ("c", OTHER)]:
        router.add_expert(skill, expert, FeatureStatistics.from_features(features[skill]))
    return router, features


def test_dense_weights_are_the_probabilities_among_the_candidates() -> None:
    router, features = fitted()
    probabilities = router(features["b"]).probabilities
    found = dense_weights(router, features["b"], (OWN, OTHER))
    expected = torch.stack([probabilities[:, 1], probabilities[:, 0]], -1)
    assert torch.allclose(found, expected / expected.sum(-1, keepdim=True), atol=1e-6)
    assert torch.equal(dense_weights(router, features["b"], (OWN,)), torch.ones(40, 1))


def test_dense_weights_are_finite_where_no_candidate_has_any_probability() -> None:
    router, _ = fitted()
    found = dense_weights(router, torch.full((2, WIDTH), 1e4), (OWN,))
    assert torch.equal(found, torch.ones(2, 1))


def test_the_mixture_moves_from_the_dense_one_to_one_hot() -> None:
    router, features = fitted()
    dense = dense_weights(router, features["b"], (OWN, OTHER))
    full = mixture_gates(router, features["b"], OWN, [OTHER], 1.0)
    half = mixture_gates(router, features["b"], OWN, [OTHER], 0.5)
    alone = mixture_gates(router, features["b"], OWN, [OTHER], 0.0)
    assert torch.allclose(full.weights, dense)
    assert torch.allclose(half.weights, 0.5 * dense + 0.5 * torch.tensor([1.0, 0.0]))
    assert alone.experts == (OWN,)
    assert bool((alone.weights == 1.0).all())
    assert half.weights.requires_grad
    assert not alone.weights.requires_grad


def test_a_candidate_without_a_row_is_told() -> None:
    router, features = fitted()
    with pytest.raises(TrainingError, match="no row for expert_9"):
        dense_weights(router, features["a"], (OWN, "expert_9"))


def test_balance_reaches_the_gate_and_each_part_counts_as_weighted() -> None:
    router, features = fitted()
    rehearsed = Rehearsal(features, 8).prepared(router).sample(0)
    parts = router_losses(router, features["b"], rehearsed, RouterLossWeights(balance=1.0))
    parts.balance.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in router.correction.parameters())
    weights = RouterLossWeights(balance=0.5, z=0.25, entropy=2.0, rehearsal=3.0)
    again = router_losses(router, features["b"], rehearsed, weights)
    expected = 0.5 * again.balance + 0.25 * again.z + 2 * again.entropy + 3 * again.rehearsal
    assert torch.allclose(again.total, expected)


def test_rehearsal_takes_as_many_of_each_skill_and_labels_them() -> None:
    router, features = fitted()
    drawn = Rehearsal({**features, "base": features["a"]}, 5).prepared(router).sample(3)
    rows, labels = drawn.features, drawn.labels
    # No row of no expert is fitted here, so its prompts are left out.
    assert labels.tolist() == [1] * 5 + [2] * 5 + [3] * 5
    for label, skill in enumerate(features, start=1):
        for row in rows[labels == label]:
            assert bool((features[skill] == row).all(-1).any())
    prepared = Rehearsal(features, 5).prepared(router)
    assert torch.equal(rows, prepared.sample(3).features)
    assert not torch.equal(rows, prepared.sample(4).features)
    router.set_none(FeatureStatistics.from_features(features["a"] - 5))
    labels = Rehearsal({**features, "base": features["a"] - 5}, 5).prepared(router).sample(3).labels
    assert labels.tolist()[:5] == [0] * 5


def test_rehearsing_a_skill_the_router_does_not_know_is_told() -> None:
    router, features = fitted()
    with pytest.raises(TrainingError, match="skill z"):
        Rehearsal({"z": features["a"]}).prepared(router)


def test_rehearsal_has_something_to_teach_where_the_closed_form_knows_its_rows_by_heart() -> None:
    # More dimensions than rows: on rows it was fitted on, the closed form makes no mistake.
    generator = torch.Generator().manual_seed(0)
    features = {name: torch.randn(20, 80, generator=generator) for name in ("a", "b")}
    router = DynamicHybridRouter(80, shrinkage=1e-3)
    for skill, expert in [("a", OTHER), ("b", OWN)]:
        router.add_expert(skill, expert, FeatureStatistics.from_features(features[skill]))
    sample = Rehearsal(features, 20).prepared(router).sample(0)
    with torch.no_grad():
        seen = torch.nn.functional.cross_entropy(router.raw_logits(sample.features), sample.labels)
    parts = router_losses(router, features["b"], sample, RouterLossWeights())
    parts.rehearsal.backward()
    assert float(seen) < 1e-3
    assert float(parts.rehearsal.detach()) > 0.1
    assert all(p.grad is not None and bool(p.grad.any()) for p in router.correction.parameters())


def test_rehearsal_lowers_the_cross_entropy_of_every_skill() -> None:
    router, features = fitted()
    sample = Rehearsal(features, 40).prepared(router).sample(0)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.02)
    weights = RouterLossWeights()
    first = router_losses(router, features["b"], sample, weights)
    for _ in range(30):
        optimizer.zero_grad()
        router_losses(router, features["b"], sample, weights).total.backward()
        optimizer.step()
    last = router_losses(router, features["b"], sample, weights)
    assert last.rehearsal < first.rehearsal


def test_of_many_skills_fewer_rows_of_each_are_rehearsed_in_a_step() -> None:
    labels = torch.arange(300).repeat_interleave(3)
    rows = RehearsalRows(torch.randn(900, 4), torch.randn(900, 300), labels, per_skill=3)
    drawn = rows.sample(1)
    assert torch.equal(drawn.labels, torch.arange(300))
    few = RehearsalRows(rows.features[:30], rows.closed[:30], labels[:30], per_skill=2).sample(1)
    assert torch.equal(few.labels.bincount(), torch.full((10,), 2))
    again = RehearsalRows(rows.features, rows.closed, labels, per_skill=3).sample(1)
    assert torch.equal(drawn.features, again.features)
