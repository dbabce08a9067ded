"""What a novelty test compares: the tap's features, or what is computed for the test alone.

Tap features are stored with each skill. Others are made of its stored rows whenever an arrival
comes, at a pass of the base for each: they are for comparing tests. Knows no test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.lifecycle.answer_gradients import answer_gradients
from dylora_moe.lifecycle.last_states import last_layer_states
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.observation import Observation
from dylora_moe.lifecycle.recipe import Representation
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.training.rows import Rows

_States = Callable[[LivePool, Rows], Tensor]
_STATES: Mapping[Representation, _States] = {
    "last-layer": last_layer_states,
    "gradient": answer_gradients,
}


@dataclass(frozen=True, eq=False)
class Compared:
    """An arrival's rows and the skills, in the same representation."""

    features: Float[Tensor, "n d"]
    library: SkillLibrary


def compared(live: LivePool, observation: Observation, representation: Representation) -> Compared:
    """All rows of an arrival and the live skills as the representation has them."""
    if representation == "tap":
        return Compared(observation.all_features, live.library)
    states = _STATES[representation]
    parts = [states(live, observation.train)]
    if observation.validation is not None:
        parts.append(states(live, observation.validation))
    return Compared(torch.cat(parts), _library(live, states))


def _library(live: LivePool, states: _States) -> SkillLibrary:
    """The live skills with states of their stored rows instead of tap features; without those that
    came as prompts alone, of which only the tap features are stored."""
    library = SkillLibrary()
    for record in live.revision.skills:
        if record.examples:
            rows = live.encode(live.read(record.examples))
            library.add_skill(record.skill_id, states(live, rows), record.expert_id)
    return library
