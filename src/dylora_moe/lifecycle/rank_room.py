"""What an expert's rank may grow to where it trains as from the start: the recipe's highest, within
the cap on the pool's parameters.

Knows a live pool and a recipe; grows nothing.
"""

from __future__ import annotations

from dataclasses import replace

from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.recipe import Recipe
from dylora_moe.training.phases import Phase


def highest_rank(live: LivePool, recipe: Recipe, expert_id: str) -> int:
    """The rank that an expert of the pool may come to in the phases of a new one; that which it has
    where nothing may grow, or the cap leaves no room.

    Args:
        live: the pool.
        recipe: its phases and its cap.
        expert_id: in the pool.
    """
    experts = live.experts
    rank = experts.rank(expert_id)
    if not experts.has_one_rank(expert_id):
        return rank
    most = max(phase.max_rank or 0 for phase in recipe.new_expert)
    cap = recipe.growth.max_parameters
    if cap is not None:
        own = experts.parameter_count(expert_id)
        others = sum(experts.parameter_count(name) for name in experts.names) - own
        # Every matrix is as much larger as the rank.
        most = min(most, (cap - others) * rank // own)
    return max(rank, most)


def parameters_at(live: LivePool, expert_id: str, rank: int) -> int:
    """Of an expert of the pool, were it of this rank: every matrix is as much larger."""
    experts = live.experts
    return experts.parameter_count(expert_id) * rank // experts.rank(expert_id)


def within_cap(live: LivePool, recipe: Recipe, expert_id: str) -> tuple[Phase, ...]:
    """The phases of a new expert for one that the pool has: its rank grows to no more than
    `highest_rank`."""
    most = highest_rank(live, recipe, expert_id)
    return tuple(
        phase if phase.max_rank is None else replace(phase, max_rank=min(phase.max_rank, most))
        for phase in recipe.new_expert
    )
