"""A router fitted and asked in variants, on features that are there already.

Knows the router and feature vectors; compares nothing and writes nothing.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from choice_features import Pooled, Stored
from jaxtyping import Float, Int
from router_variants import Fit, Variant
from torch import Tensor
from torch.nn.functional import normalize

from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.routing.calibration import best_temperature
from dylora_moe.routing.correction import make_correction
from dylora_moe.routing.fit import fit_correction
from dylora_moe.routing.gate import ClosedFormGate
from dylora_moe.routing.judge import Judge
from dylora_moe.routing.rehearsal import rehearse
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.routing.routing import Routing

_HELD_OUT = 0.2
_RATE, _DECAY = 1e-3, 0.01


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted router, calibrated.

    Attributes:
        router: of the seed's rows.
        view: what it sees of pooled features.
        temperature: the calibrated one.
        seconds: of the fit.
        kept: the step whose correction was kept; 0 for none.
        multiply_adds: of one decision.
    """

    router: DynamicHybridRouter
    view: Callable[[Pooled], Float[Tensor, "n d"]]
    temperature: float
    seconds: float
    kept: int
    multiply_adds: int


@dataclass(frozen=True, eq=False)
class Seen:
    """What a variant says of the test rows, skill after skill.

    Attributes:
        right: index of each row's skill.
        probabilities: of no expert and of each skill.
        weights: of each skill's expert, zero where a row goes to none.
        foreign: share of each foreign skill's prompts that go to no expert.
    """

    right: Int[Tensor, " n"]
    probabilities: Float[Tensor, "n k"]
    weights: Float[Tensor, "n e"]
    foreign: Mapping[str, float]


def fitted(stored: Stored, how: Fit, rows: slice, seed: int, usual: Fitted | None = None) -> Fitted:
    """A router of these rows of each skill.

    Args:
        stored: features.
        how: it is fitted.
        rows: of each skill.
        seed: of rows that are held out, and of a hidden layer's start.
        usual: one by default on the same rows. Where only a correction is asked for that is kept,
            it begins with that one's closed form.
    """
    view = _view(stored, how)
    own, train = view(stored.own), {s: view(_rows(p, rows)) for s, p in stored.train.items()}
    start = time.perf_counter()
    kept, spent = how.steps, 0.0
    if how.forced and usual is not None:
        router, spent = _beside(usual.router, how), usual.seconds
        _train(router, train, own, how, seed)
    else:
        router = _closed(train, own, how, seed)
        report = fit_correction(
            router, train, own, steps=0 if how.forced else how.steps, seed=seed, **how.coefficients
        )
        kept = report.best_step
        if how.forced:
            _train(router, train, own, how, seed)
            kept = how.steps
    seconds = spent + time.perf_counter() - start
    last, width = len(train) + 1, own.shape[1]
    learned = {"linear": width * last, "mlp": width * router.hidden + router.hidden * last}
    adds = width * last + (0 if router.correction.is_zero else learned[how.gate])
    return Fitted(router, view, router.temperature, seconds, kept, adds)


@torch.no_grad()
def seen(stored: Stored, found: Fitted, variant: Variant, seed: int) -> Seen:
    """Asks a fitted router in the variant's way."""
    _shape(found, variant)
    position = variant.position
    routed: dict[str, Routing] = {}
    for skill, pooled in stored.test.items():
        rows = found.view(pooled)
        if position is not None:
            first = stored.prefixes[skill][position]
            rows = torch.where(first.isnan(), rows, first)
        routed[skill] = found.router(rows)
    skills = list(stored.train)
    right = torch.cat([torch.full((len(routed[s].none),), i) for i, s in enumerate(skills)])
    weights = torch.cat([routed[s].weights for s in skills])
    if variant.capacity is not None:
        weights = limited(weights, right, variant.capacity, variant.rule, variant.alike, seed)
    return Seen(
        right,
        torch.cat(
            [torch.cat([routed[s].none[:, None], routed[s].probabilities], 1) for s in skills]
        ),
        weights,
        {s: float(r.to_none.float().mean()) for s, r in routed.items() if s not in skills},
    )


def limited(
    weights: Float[Tensor, "n e"],
    right: Int[Tensor, " n"],
    factor: float,
    rule: Mapping[str, float],
    alike: bool,
    seed: int,
    batch: int = 32,
) -> Float[Tensor, "n e"]:
    """Weights where each expert takes no more of a batch than its capacity, first come first
    served: `ceil(factor * k * rows / experts)` rows (Lepikhin et al. 2021, "GShard", algorithm 1;
    Fedus et al. 2022, eq. 3). What is over falls to a row's other expert, or else to none.

    Args:
        weights: without a limit.
        right: the skill of each row, by which batches of one skill are made.
        factor: of the capacity.
        rule: of the selection; its `top_k` is k.
        alike: whether batches are of one skill, not of rows of all skills in random order.
        seed: of that order.
        batch: rows of a batch.
    """
    order = torch.randperm(len(right), generator=torch.Generator().manual_seed(seed))
    if alike:
        order = order[right[order].sort(stable=True).indices]
    found = torch.zeros_like(weights)
    for rows in order.split(batch):
        room = math.ceil(factor * rule.get("top_k", 2) * len(rows) / weights.shape[1])
        given = weights[rows]
        taken = (given > 0).cumsum(0) <= room
        left = torch.where(taken, given, 0.0)
        found[rows] = left / left.sum(1, keepdim=True).clamp_min(1e-12)
    return found


def _shape(found: Fitted, variant: Variant) -> None:
    """The router's rule and temperature as the variant has them; nothing of another one stays."""
    router, experts = found.router, found.router.experts
    factor = variant.temperature
    router.log_temperature.data.fill_(
        0.0 if factor is None else math.log(found.temperature * factor)
    )
    young = {"none": (), "last": experts[-1:], "all": experts}[variant.young]
    router.set_maturity({expert: 0.0 if expert in young else 1.0 for expert in experts})
    # A pool whose experts are all mature is fully annealed; one with a young expert is not.
    usual: dict[str, Any] = {"top_k": 2, "dense_above": 0.05, "unsure_above": 0.05,
                             "mix_temperature": 1.0, "progress": 0.0 if young else 1.0}  # fmt: skip
    router.rule = replace(router.rule, **{**usual, **variant.rule})


def _closed(train: Mapping[str, Tensor], own: Tensor, how: Fit, seed: int) -> DynamicHybridRouter:
    """The closed form of these rows; refitted once, and not after each skill."""
    router = DynamicHybridRouter(own.shape[1], gate=how.gate, seed=seed)
    with patch.object(ClosedFormGate, "refit"):
        router.set_none(FeatureStatistics.from_features(own))
        for skill, part in train.items():
            router.add_expert(skill, f"expert_{skill}", FeatureStatistics.from_features(part))
    router.closed_form.refit()
    return router


def _beside(usual: DynamicHybridRouter, how: Fit) -> DynamicHybridRouter:
    """The same closed form, with a correction of its own that is zero."""
    router = copy.deepcopy(usual)
    made = make_correction(how.gate, router.d_features, router.hidden, router.seed)
    made.reset_rows(len(router.rows) + 1)
    made.centre, made.scale = usual.correction.centre, usual.correction.scale
    router.correction, router.gate = made, how.gate
    return router


def _train(
    router: DynamicHybridRouter, train: Mapping[str, Tensor], own: Tensor, how: Fit, seed: int
) -> None:
    """Trains the correction for all the steps and keeps it: `fit_correction` without its proof."""
    losses = how.coefficients
    stored = rehearse(router.table, train, own, holdout=_HELD_OUT, seed=seed)
    judge = Judge(router, stored, losses["balance"], losses["z"], losses["entropy"], 0.0)
    router.log_temperature.data.fill_(math.log(judge.train_temperature()))
    groups = [
        {"params": list(router.correction.parameters()), "weight_decay": _DECAY},
        {"params": [router.log_temperature], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=_RATE)
    for _ in range(how.steps):
        optimizer.zero_grad()
        judge.loss().backward()
        optimizer.step()
    with torch.no_grad():
        logits, labels = judge.raw(judge.out).cpu(), judge.labels[judge.out].cpu()
    router.log_temperature.data.fill_(math.log(best_temperature(logits, labels)))


def _rows(pooled: Pooled, rows: slice) -> Pooled:
    return {kind: values[rows] for kind, values in pooled.items()}


def _view(stored: Stored, how: Fit) -> Callable[[Pooled], Tensor]:
    columns = torch.cat(
        [torch.arange(b * stored.d_model, (b + 1) * stored.d_model) for b in how.blocks]
    )
    own = torch.cat([stored.own[kind][:, columns] for kind in how.kinds], 1)
    centre, spread = own.mean(0), own.std(0).clamp_min(1e-6)

    def view(pooled: Pooled) -> Tensor:
        rows = torch.cat([pooled[kind][:, columns] for kind in how.kinds], 1)
        if how.scale == "standard":
            return (rows - centre) / spread
        if how.scale == "unit":
            return normalize(rows.unflatten(1, (-1, stored.d_model)), dim=-1).flatten(1)
        return rows

    return view
