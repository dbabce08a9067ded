"""The router's part of a change: its kind of gate, the refit, and the event that tells of it.

Knows the live router and the library's stored features; knows nothing of why they changed.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.recipe import Recipe
from dylora_moe.records import MATURE_FROM, Event
from dylora_moe.routing.fit import FitReport, calibrate_closed, fit_correction
from dylora_moe.routing.losses import balance_loss
from dylora_moe.routing.rehearsal import even_sample
from dylora_moe.routing.routing import Routing

_TOLD_ROWS = 1024
"""Stored rows that an event's two means are taken over, one of each class at least."""


def shape_router(live: LivePool, recipe: Recipe) -> None:
    """Gives the router what the recipe says of it, before anything is learned by it, and leaves
    the rest as the pool has it; another kind of gate starts its correction anew."""
    old = live.router
    if recipe.gate is not None and old.gate != recipe.gate:
        live.model.router = live.fresh_router(recipe.gate, like=old)
        live.router.set_maturity(old.maturity)
    if recipe.top_k is not None:
        live.router.rule = replace(live.router.rule, top_k=recipe.top_k)
    if recipe.none_share is not None:
        live.router.none_share = recipe.none_share
    if recipe.granularity is not None:
        live.route_by(recipe.granularity)


def adapt_router(live: LivePool, recipe: Recipe) -> FitReport:
    """Trains the gate's correction on stored features and calibrates its two numbers."""
    live.router.anneal(_ripeness(live))
    return fit_correction(
        live.router,
        _stored(live),
        live.own,
        steps=recipe.fit_steps,
        seed=recipe.seed,
        balance=recipe.losses.balance,
        z=recipe.losses.z,
        entropy=recipe.losses.entropy,
    )


def calibrate_router(live: LivePool, recipe: Recipe) -> None:
    """What `adapt_router` does to the router, without a report: for a new row, before its expert
    trains. A gate that is the closed form alone has nothing to be judged."""
    if recipe.fit_steps or not live.router.correction.is_zero:
        adapt_router(live, recipe)
        return
    live.router.anneal(_ripeness(live))
    calibrate_closed(live.router, _stored(live), live.own)


def _stored(live: LivePool) -> dict[str, Tensor]:
    return {skill.skill_id: skill.features for skill in live.library.skills}


def _ripeness(live: LivePool) -> float:
    """How far the pool's youngest expert is past maturity, 0 to 1: what the gate is annealed by."""
    youngest = min(live.router.maturity.values(), default=0.0)
    return max(0.0, (youngest - MATURE_FROM) / (1.0 - MATURE_FROM))


def router_event(live: LivePool, report: FitReport, seconds: float, run_id: str | None) -> Event:
    """The event `router` with what the fit came to, and how the stored rows are shared out now."""
    none = report.none
    with torch.no_grad():
        parts = [live.own, *(skill.features for skill in live.library.skills)]
        chosen = even_sample([len(part) for part in parts], _TOLD_ROWS)
        stored = torch.cat([p[rows].float() for p, rows in zip(parts, chosen, strict=True)])
        routing: Routing = live.router(stored.to(live.base.device))
        belongs = torch.arange(len(stored), device=live.base.device) >= len(chosen[0])
        balance = balance_loss(routing.probabilities, belongs)
    return Event(
        "router",
        {
            "classes": len(live.router.rows) + 1,
            "temperature": report.temperature,
            "accuracy_before": report.accuracy_before,
            "accuracy_after": report.accuracy_after,
            "loss_before": report.loss_before,
            "loss_after": report.loss_after,
            "none_threshold": live.router.none_threshold,
            "own_to_none": none.own_share if none is not None else None,
            "foreign_to_none": none.foreign_share if none is not None else None,
            "fit_seconds": seconds,
            "balance_loss": float(balance),
            "entropy": float(routing.entropy[belongs].mean()) if belongs.any() else None,
        },
        run_id=run_id,
    )
