"""The map of skills: what is kept of their distances, and where inputs lie on it."""

from __future__ import annotations

import pytest
import torch

from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.skills.landscape import Landscape
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.screening import Screen, screen_of

D = 12


def screen(n_skills: int) -> Screen:
    """Skills far apart, along axes of their own; what is foreign lies around zero."""
    draw = torch.Generator().manual_seed(0)
    library = SkillLibrary()
    for index in range(n_skills):
        rows = torch.randn(64, D, generator=draw)
        rows[:, index] += 20.0
        library.add_skill(f"skill_{index}", rows, f"expert_{index}")
    own = FeatureStatistics.from_features(torch.randn(256, D, generator=draw))
    return screen_of(library, own)


def test_two_skills_and_what_is_foreign_keep_their_distances_on_the_plane() -> None:
    made = screen(2)
    plane = Landscape.of(made)
    flat = torch.cat([plane.skills, plane.foreign[None]])
    whole = torch.cat([made.directions, torch.zeros(1, D)])
    assert torch.allclose(torch.cdist(flat, flat), torch.cdist(whole, whole), atol=1e-3)
    assert sum(plane.shares) == pytest.approx(1.0)
    assert plane.shares[0] >= plane.shares[1] > 0


def test_rows_of_a_skill_lie_around_its_point() -> None:
    made = screen(4)
    plane = Landscape.of(made)
    rows = torch.randn(200, D, generator=torch.Generator().manual_seed(1))
    rows[:, 1] += 20.0
    middle = plane.place(rows).mean(0)
    distances = (plane.skills - middle).norm(dim=1)
    assert int(distances.argmin()) == 1
    assert distances[1] < 0.5
    foreign = plane.place(torch.as_tensor(made.origin, dtype=torch.float32)[None])[0]
    assert torch.allclose(foreign, plane.foreign, atol=1e-4)


def test_the_map_does_not_depend_on_the_sign_of_an_axis() -> None:
    plane = Landscape.of(screen(5))
    points = torch.cat([plane.skills, plane.foreign[None]])
    farthest = points.gather(0, points.abs().argmax(0, keepdim=True))
    assert bool((farthest > 0).all())


@pytest.mark.parametrize("n_skills", [0, 1])
def test_few_skills_have_a_map_too(n_skills: int) -> None:
    plane = Landscape.of(screen(n_skills))
    assert plane.skills.shape == (n_skills, 2)
    assert plane.shares == ((1.0, 0.0) if n_skills else (0.0, 0.0))
    assert bool(torch.isfinite(plane.place(torch.ones(3, D))).all())
