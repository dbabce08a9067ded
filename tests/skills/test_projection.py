"""Laws of the learned projection, and of the cosine rule in it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dylora_moe.skills.cosine import Cosine
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.projection import ContrastiveProjection, ProjectedCosine, contrastive_loss

from .builders import cluster, library

KNOWN = 3


def strangers(n: int = 100) -> Tensor:
    """Rows of no skill, each from somewhere else."""
    return torch.cat([cluster(500 + index, 1) for index in range(n)])


def test_the_loss_is_the_papers_written_out() -> None:
    points = torch.nn.functional.normalize(
        torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), dim=1
    )
    labels = [0, 1, 0, -1, 1, 0, -1]
    rows = []
    for i, anchor in enumerate(points):
        positives = [j for j in range(7) if j != i and labels[j] == labels[i] >= 0]
        others = [math.exp(anchor @ points[j] / 0.3) for j in range(7) if j != i]
        terms = [math.log(math.exp(anchor @ points[j] / 0.3) / sum(others)) for j in positives]
        if positives:
            rows.append(-sum(terms) / len(positives))
    found = contrastive_loss(points, torch.tensor(labels), 0.3)
    assert float(found) == pytest.approx(sum(rows) / len(rows), rel=1e-5)


def test_it_tells_apart_what_cosine_alone_takes_for_one() -> None:
    pool, test = library(KNOWN), ProjectedCosine(Cosine(), ContrastiveProjection(strangers()))
    for index in range(KNOWN):
        returning = cluster(index, 64, seed=5)
        assert not test.is_novel(returning, pool)
        assert test.measure(returning, pool).nearest[0][0] == f"skill_{index}"
    for index in range(20, 30):
        new = cluster(index, 64, seed=5)
        assert not Cosine().is_novel(new, pool)
        assert test.is_novel(new, pool), index


def test_training_draws_skills_apart() -> None:
    pool = library(KNOWN)
    closest = {}
    for steps in (0, 100):
        found = ContrastiveProjection(strangers(), steps=steps).of(pool)
        means = [found.library[s.skill_id].features.mean(0) for s in pool.skills]
        unit = torch.nn.functional.normalize(torch.stack(means), dim=1)
        own = [
            torch.nn.functional.normalize(found.library[s.skill_id].features, dim=1) @ direction
            for s, direction in zip(pool.skills, unit, strict=True)
        ]
        closest[steps] = float(torch.cat(own).mean())
    assert closest[100] > closest[0] + 0.05


def test_one_skill_alone_is_told_from_rows_of_no_skill() -> None:
    pool, test = library(1), ProjectedCosine(Cosine(), ContrastiveProjection(strangers()))
    assert not test.is_novel(cluster(0, 64, seed=5), pool)
    assert test.is_novel(cluster(7, 64, seed=5), pool)


def test_with_nothing_to_tell_it_from_a_skill_is_only_scaled() -> None:
    untrained = ContrastiveProjection(steps=0).of(library(1)).head
    head = ContrastiveProjection().of(library(1)).head
    assert torch.equal(head.weight, untrained.weight)
    assert not head.centre.any()
    alone = SkillLibrary()
    for index in range(3):
        alone.add_skill(f"skill_{index}", cluster(index, 1), f"expert_{index}")
    assert ContrastiveProjection(strangers()).of(alone).head.weight.isfinite().all()


def test_the_same_rows_and_seed_give_the_same_projection_and_another_seed_another() -> None:
    first, again, other = (
        ContrastiveProjection(strangers(), seed).of(library()).head.weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_it_is_trained_once_until_the_library_changes() -> None:
    pool, projection = library(), ContrastiveProjection(strangers())
    kept = projection.of(pool)
    assert projection.of(pool) is kept
    pool.extend("skill_1", cluster(1, 8, seed=9))
    changed = projection.of(pool)
    assert changed is not kept
    assert not torch.equal(changed.head.weight, kept.head.weight)
    assert projection.of(pool) is changed


def test_training_leaves_the_callers_randomness_and_grad_mode_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with torch.no_grad():
        head = ContrastiveProjection(strangers()).of(library()).head
    assert torch.equal(torch.rand(2), expected)
    assert not head.weight.requires_grad


def test_of_many_skills_a_step_looks_at_some() -> None:
    pool = SkillLibrary(dtype=torch.float16)
    for index in range(40):
        pool.add_skill(f"skill_{index}", cluster(index, 12), f"expert_{index}")
    test = ProjectedCosine(Cosine(), ContrastiveProjection(strangers()))
    hits = [test.measure(cluster(i, 32, seed=5), pool).nearest[0][0] for i in range(40)]
    assert sum(name == f"skill_{index}" for index, name in enumerate(hits)) >= 38


def test_every_step_tells_skills_from_rows_of_no_skill() -> None:
    """Their mean alone would leave the projection the same."""
    middle = strangers().mean(0)
    first, other = middle + strangers() - middle, 2 * middle - strangers()
    weights = [ContrastiveProjection(rows).of(library()).head.weight for rows in (first, other)]
    assert not torch.allclose(*weights, atol=1e-3)
