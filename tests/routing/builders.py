"""Small pools of clusters to route between."""

from __future__ import annotations

import torch
from torch import Tensor

from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.routing.router import DynamicHybridRouter

D = 12
SKILLS = ("sql", "json", "bash")


def cluster(index: int, n: int = 40, d: int = D, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Rows around a point that is a function of the index alone."""
    centre = 3.0 * torch.randn(d, generator=torch.Generator().manual_seed(1000 + index))
    noise = torch.randn(n, d, generator=torch.Generator().manual_seed(7919 * seed + index))
    return centre + spread * noise


def none_rows(n: int = 60, seed: int = 0) -> Tensor:
    return cluster(99, n, seed=seed, spread=1.5)


def features() -> dict[str, Tensor]:
    return {skill: cluster(i) for i, skill in enumerate(SKILLS)}


def build(maturity: float = 0.0, none: bool = True, **settings) -> DynamicHybridRouter:
    """A router of three skills, one expert each."""
    router = DynamicHybridRouter(D, **settings)
    if none:
        router.set_none(FeatureStatistics.from_features(none_rows()))
    for skill, rows in features().items():
        router.add_expert(skill, f"expert_{skill}", FeatureStatistics.from_features(rows))
    if maturity:
        router.set_maturity(dict.fromkeys(router.experts, maturity))
    return router


def train_a_step(router: DynamicHybridRouter, lr: float = 0.05) -> None:
    """One step on the weights, so that the correction is not zero."""
    optimizer = torch.optim.Adam(router.parameters(), lr=lr)
    for _ in range(2):
        routing = router(torch.cat([cluster(0, 4, seed=5), cluster(1, 4, seed=5)]))
        loss = -routing.logits.log_softmax(-1)[:, 1].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
