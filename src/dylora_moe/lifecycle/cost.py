"""What learning an arrival would cost, before any of it is spent."""

from __future__ import annotations

import math

from dylora_moe.lifecycle.change import Stores
from dylora_moe.lifecycle.consolidating import nothing_to_teach
from dylora_moe.lifecycle.judgement import Judgement
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.observation import Observation
from dylora_moe.lifecycle.rank_room import highest_rank, parameters_at
from dylora_moe.lifecycle.recipe import Recipe
from dylora_moe.lifecycle.results import Cost
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
    judgement: Judgement,
) -> Cost:
    """Tokens, seconds, parameters and bytes of learning the arrival as the verdict says; parameters
    and bytes are the most that a rank which may grow can come to.

    The rate is that of the pool's last training on record; before the first, it follows from the
    time that the trunk took over these very rows.
    """
    verdict = judgement.verdict
    if verdict.name == "unsure" or nothing_to_teach(verdict, verdict.name):
        return Cost(0, 0.0, 0, 0)
    new = verdict.name == "novel"
    afresh = new or verdict.name == "revised"
    phases = recipe.new_expert if afresh else recipe.more_data
    fresh = len(observation.train_examples)
    mean = sum(observation.train.lengths) / fresh
    rows = fresh if new else fresh + _replayed(live, recipe, judgement, fresh)
    tokens = sum(_rows_of(phase, rows) * phase.epochs * mean for phase in phases)
    there, written = _parameters(live, recipe, judgement, afresh)
    return Cost(
        tokens=math.ceil(tokens),
        seconds=tokens / _tokens_per_second(live, stores, observation),
        parameters=written - there,
        bytes=written * _BYTES,
    )


def _parameters(
    live: LivePool, recipe: Recipe, judgement: Judgement, afresh: bool
) -> tuple[int, int]:
    """Of the expert that trains: those it has, and the most that it may come to. A new version is a
    whole adapter on disk; it replaces the one in memory."""
    if judgement.verdict.name == "novel":
        shape = recipe.shape
        most = live.experts.parameters_of_shape(rank=shape.max_rank, targets=shape.targets)
        return 0, most
    expert = _expert_of(live, judgement)
    there = live.experts.parameter_count(expert)
    if not afresh:
        return there, there
    return there, parameters_at(live, expert, highest_rank(live, recipe, expert))


def _expert_of(live: LivePool, judgement: Judgement) -> str:
    """The expert that trains on."""
    assert judgement.skill_id is not None
    return live.skills[judgement.skill_id].expert_id


def _replayed(live: LivePool, recipe: Recipe, judgement: Judgement, fresh: int) -> int:
    """Stored rows that train beside the new ones; taken to be as long as these."""
    expert = _expert_of(live, judgement)
    revised = judgement.skill_id if judgement.verdict.name == "revised" else None
    stored = sum(
        live.library[skill_id].statistics.count
        for skill_id, skill in live.skills.items()
        if skill.expert_id == expert and skill_id != revised
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
