"""What learning an arrival would cost, before any of it is spent."""

from __future__ import annotations

import math

from dylora_moe.lifecycle.change import Stores
from dylora_moe.lifecycle.consolidating import nothing_to_teach
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.observation import Observation
from dylora_moe.lifecycle.recipe import Recipe
from dylora_moe.lifecycle.results import Cost
from dylora_moe.records import Verdict
from dylora_moe.training.phases import Phase

_BACKWARD = 3.0
"""A training pass through a block against a forward pass: once forward, once back for the inputs
(twice the forward's cost, as the base's own weights get no gradient, is the bound from above)."""
_BYTES = 4


def estimate(
    live: LivePool,
    stores: Stores,
    recipe: Recipe,
    observation: Observation,
    verdict: Verdict,
) -> Cost:
    """Tokens, seconds, parameters and bytes of learning the arrival as the verdict says.

    The rate is that of the pool's last training on record; before the first, it follows from the
    time that the trunk took over these very rows.
    """
    if verdict.name == "unsure" or nothing_to_teach(verdict, verdict.name):
        return Cost(0, 0.0, 0, 0)
    new = verdict.name == "novel"
    afresh = new or verdict.name == "revised"
    phases = recipe.new_expert if afresh else recipe.more_data
    fresh = len(observation.train_examples)
    mean = sum(observation.train.lengths) / fresh
    rows = fresh if afresh else fresh + _replayed(live, recipe, verdict, fresh)
    tokens = sum(_rows_of(phase, rows) * phase.epochs * mean for phase in phases)
    shape = recipe.shape
    parameters = (
        live.experts.parameters_of_shape(rank=shape.rank, targets=shape.targets) if new else 0
    )
    return Cost(
        tokens=math.ceil(tokens),
        seconds=tokens / _tokens_per_second(live, stores, observation),
        parameters=parameters,
        bytes=parameters * _BYTES,
    )


def _replayed(live: LivePool, recipe: Recipe, verdict: Verdict, fresh: int) -> int:
    """Stored rows that train beside the new ones; taken to be as long as these."""
    expert = live.skills[verdict.nearest[0][0]].expert_id
    stored = sum(
        live.library[skill_id].statistics.count
        for skill_id, skill in live.skills.items()
        if skill.expert_id == expert
    )
    return min(stored, round(recipe.replay * fresh))


def _rows_of(phase: Phase, rows: int) -> int:
    return rows if phase.max_examples is None else min(rows, phase.max_examples)


def _tokens_per_second(live: LivePool, stores: Stores, observation: Observation) -> float:
    trained = stores.registry.events("trained", limit=1)
    if trained and trained[0].numbers.get("tokens_per_second"):
        return float(trained[0].numbers["tokens_per_second"])
    anatomy = live.base.anatomy
    trunk_rate = observation.tokens / max(observation.trunk_seconds, 1e-6)
    blocks = anatomy.n_blocks - anatomy.tap_layer
    return trunk_rate * anatomy.tap_layer / (blocks * _BACKWARD)
