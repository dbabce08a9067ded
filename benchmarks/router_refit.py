"""A new skill beside a thousand: the refit of the gate, and all that a change does to the router.

python benchmarks/router_refit.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from harness import Benchmark, Check, Options, Row, Samples, main
from torch import Tensor

from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.recipe import Recipe
from dylora_moe.lifecycle.router_change import adapt_router, router_event
from dylora_moe.routing.closed_form import lda
from dylora_moe.routing.rehearsal import rehearse
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.routing.rows import Class
from dylora_moe.routing.rows import Row as SkillRow
from dylora_moe.skills.library import Skill, SkillLibrary
from dylora_moe.training.objective import RouterLossWeights

WIDTHS = (576, 2304)
"""Of one feature block of SmolLM2-135M, and of the four that the product pools."""
STORED = (64, 320)
"""Rows of each skill."""
_OWN = 512


@dataclass(frozen=True)
class Pool:
    """A router of many skills, and what `lifecycle` reads of the pool around it."""

    live: LivePool
    recipe: Recipe
    router: DynamicHybridRouter
    arrival: Tensor


def run(options: Options, width: int, stored: int) -> Mapping[str, Any]:
    """Adds a skill to the pool, and takes it out again: its refit, and the whole change."""
    if options.toy:
        width, stored = width // 24, 24
    pool = _pool(30 if options.toy else 1000, width, stored)
    keys = _keys(pool.arrival)
    refits, wholes = [], []
    for turn in range(2 if options.toy else options.warmup + options.repeats):
        start = time.perf_counter()
        statistics = FeatureStatistics.from_features(pool.arrival)
        pool.router.add_expert("new", "expert_new", statistics)
        refit = time.perf_counter() - start
        pool.live.library.add_skill("new", pool.arrival, "expert_new", keys)
        report = adapt_router(pool.live, pool.recipe)
        router_event(pool.live, report, 0.0, None)
        whole = time.perf_counter() - start
        pool.live.library.remove("new")
        pool.router.remove("new", statistics)
        _learn(pool.router)
        if options.toy or turn >= options.warmup:
            refits.append(refit)
            wholes.append(whole)
    return {"seconds": refits, "whole": wholes}


def checks(options: Options) -> Sequence[Check]:
    """Any order of arrival is a fit from scratch; held-out rows are judged without having been in.

    At a size where fitting anew is cheap; the code is the same.
    """
    width, count = (24, 6) if options.toy else (576, 40)
    pool = _pool(count, width, 40)
    skills = pool.live.library.skills
    own = FeatureStatistics.from_features(pool.live.own)
    parts = [own, *(FeatureStatistics.from_features(s.features) for s in skills)]
    shuffled = DynamicHybridRouter(width)
    for index in torch.randperm(count, generator=torch.Generator().manual_seed(1)).tolist():
        shuffled.add_expert(skills[index].skill_id, "expert", parts[1 + index])
    shuffled.set_none(own)
    scratch = lda(parts).weight
    order = [0, *(1 + int(row.skill_id) for row in shuffled.rows)]
    found = [
        Check(
            "the gate's rows, skills in random order, against a fit from scratch, relative",
            _relative(shuffled.table.solve().weight, scratch[order]),
            1e-8,
        )
    ]
    stored = {skill.skill_id: skill.features for skill in skills}
    seen = rehearse(pool.router.table, stored, pool.live.own, holdout=0.2)
    out = seen.held_out
    kept = [seen.features[(seen.labels == label) & ~out] for label in range(count + 1)]
    expected = lda([FeatureStatistics.from_features(part) for part in kept])
    logits = expected.logits(seen.features[out]).log_softmax(-1)
    difference = float((seen.closed[out].double().log_softmax(-1) - logits).abs().max())
    found.append(Check("log-probabilities of held-out rows, gate fitted anew", difference, 1e-2))
    return found


def rows(samples: Samples) -> Sequence[Row]:
    found = []
    for width in WIDTHS:
        for stored in STORED:
            arm = _name(width, stored)
            narrow = width == WIDTHS[0]
            found += [
                samples.row(
                    arm,
                    f"router refit after adding one skill to 1,000, {arm}, s",
                    must=0.1 if narrow else None,
                    aim=0.03 if narrow else None,
                ),
                samples.row(
                    arm,
                    f"adding the 1,000th skill: refit, calibration and event, {arm}, s",
                    metric="whole",
                    must=1.0,
                    aim=1.0,
                ),
            ]
    return found


def _pool(count: int, width: int, stored: int) -> Pool:
    """Skills whose rows have a realistic spectrum: a common offset, few strong directions."""
    generator = torch.Generator().manual_seed(0)
    spectrum = 3 * torch.arange(1, width + 1) ** -0.5
    mixing = spectrum[:, None] * torch.randn(width, width, generator=generator) / width**0.5
    noise = torch.randn(4 * _OWN, width, generator=generator) @ mixing
    offset = 5 * torch.randn(width, generator=generator)

    def around(distance: float, n: int) -> Tensor:
        mean = offset + distance * torch.randn(width, generator=generator) @ mixing
        return mean + noise[torch.randint(len(noise), (n,), generator=generator)]

    router = DynamicHybridRouter(width)
    own = around(0.5, _OWN)
    router.set_none(FeatureStatistics.from_features(own))
    library, table = SkillLibrary(), router.table
    nothing = torch.zeros(0, width, dtype=torch.float64)
    for index in range(count):
        features = around(0.1, stored)
        statistics = FeatureStatistics.from_features(features)
        # As `add_expert` does it, less the refit, which only the last one's is needed of.
        table.shared.add(statistics)
        table.rows += (SkillRow(str(index), f"expert_{index}"),)
        table.classes += (Class(stored, statistics.mean),)
        # The gate keeps the scatters' sum alone, and a thousand roots would fill the memory.
        kept = FeatureStatistics(stored, statistics.mean, root=nothing)
        library.put(Skill(str(index), f"expert_{index}", kept, features, _keys(features)))
    router.correction.reset_rows(count + 1)
    router.set_maturity({})
    router.closed_form.refit()
    _learn(router)
    live = SimpleNamespace(
        router=router, library=library, own=own, base=SimpleNamespace(device=torch.device("cpu"))
    )
    recipe = SimpleNamespace(fit_steps=0, seed=0, losses=RouterLossWeights())
    return Pool(cast(LivePool, live), cast(Recipe, recipe), router, around(0.1, stored))


def _learn(router: DynamicHybridRouter) -> None:
    """A correction as training leaves it, so that there is something to judge."""
    with torch.no_grad():
        router.correction.delta_W.normal_(generator=torch.Generator().manual_seed(1)).mul_(1e-3)


def _keys(features: Tensor) -> tuple[str, ...]:
    return tuple(str(index) for index in range(len(features)))


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _name(width: int, stored: int) -> str:
    return f"{width} features, {stored} rows a skill"


def _arms() -> dict[str, Callable[[Options], Mapping[str, Any]]]:
    return {
        _name(width, stored): lambda o, w=width, s=stored: run(o, w, s)  # type: ignore[misc]
        for width in WIDTHS
        for stored in STORED
    }


if __name__ == "__main__":
    main(
        Benchmark(
            name="router_refit",
            title="The router after the 1,000th skill",
            compared="the new skill's statistics and the refit of every row in float64; then what "
            "a change does besides: the correction judged on held-out rows, temperature and "
            "threshold calibrated on rows left out one by one, the event's numbers. On the CPU "
            "only: the closed form is solved in float64 on the CPU on every device",
            arms=_arms(),
            rows=rows,
            checks=checks,
            metric=("seconds", "s a refit"),
            rounds=3,
            devices=("cpu",),
            defaults=Options(warmup=1, repeats=5),
        )
    )
