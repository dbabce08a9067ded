"""Clusters of features, and a library of three of them."""

from __future__ import annotations

import torch
from torch import Tensor

from dylora_moe.skills.library import SkillLibrary

D = 24


def cluster(index: int, n: int = 80, seed: int = 0, d: int = D) -> Tensor:
    """Rows around a point that is a function of the index alone, far from the origin."""
    centre = 10 + torch.randn(d, generator=torch.Generator().manual_seed(1000 + index))
    return centre + torch.randn(n, d, generator=torch.Generator().manual_seed(7919 * seed + index))


def library(n: int = 3) -> SkillLibrary:
    built = SkillLibrary()
    for index in range(n):
        built.add_skill(f"skill_{index}", cluster(index), f"expert_{index}")
    return built
