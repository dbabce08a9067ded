"""Every guard before a new expert refuses on its own, and none where all is well."""

from __future__ import annotations

import pytest

from dylora_moe.errors import ConfigError, PoolFullError
from dylora_moe.skills.growth import GrowthLimits, PoolSize, Refusal, refusals, require_room

POOL = PoolSize(experts=3, parameters=300, arrivals_since_creation=2)


def ask(limits: GrowthLimits, pool: PoolSize = POOL, samples: int = 64) -> tuple[Refusal, ...]:
    return refusals(limits, pool, samples=samples, tokens=1000, new_parameters=100)


def test_nothing_speaks_against_growth_by_default() -> None:
    assert ask(GrowthLimits()) == ()
    require_room(GrowthLimits(), POOL, 100)


@pytest.mark.parametrize(
    ("limits", "guard", "waits"),
    [
        (GrowthLimits(allowed=False), "switch", False),
        (GrowthLimits(max_experts=3), "max_experts", False),
        (GrowthLimits(max_parameters=399), "max_parameters", False),
        (GrowthLimits(cooldown=3), "cooldown", True),
        (GrowthLimits(min_samples=65), "samples", True),
        (GrowthLimits(min_tokens=1001), "tokens", True),
    ],
)
def test_each_guard_refuses_on_its_own(limits: GrowthLimits, guard: str, waits: bool) -> None:
    (refusal,) = ask(limits)
    assert refusal.guard == guard
    assert refusal.waits is waits
    if waits:
        require_room(limits, POOL, 100)
    else:
        with pytest.raises(PoolFullError) as caught:
            require_room(limits, POOL, 100)
        assert str(caught.value) == refusal.reason


@pytest.mark.parametrize(
    "limits",
    [
        GrowthLimits(max_experts=4),
        GrowthLimits(max_parameters=400),
        GrowthLimits(cooldown=2),
        GrowthLimits(min_samples=64),
        GrowthLimits(min_tokens=1000),
    ],
)
def test_the_limit_itself_is_allowed(limits: GrowthLimits) -> None:
    assert ask(limits) == ()


def test_the_first_expert_needs_no_cooldown() -> None:
    assert ask(GrowthLimits(cooldown=9), PoolSize(0, 0)) == ()


def test_every_reason_is_named() -> None:
    limits = GrowthLimits(False, 0, 0, 9, 999, 9999)
    assert len(ask(limits)) == 6


def test_limits_below_zero_are_refused() -> None:
    with pytest.raises(ConfigError):
        GrowthLimits(max_experts=-1)
