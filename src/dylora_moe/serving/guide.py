"""Where a prompt would go, and where it lies among the skills, without answering it.

The screen and the map of a revision are made once, outside the engine's thread, from what that
hands out; of each prompt only the trunk and the gate run there. Knows no HTTP.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.foundation.statistics import FeatureStatistics, SharedScatter
from dylora_moe.lifecycle.answering import token_features
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.records import PoolRevision, Turn
from dylora_moe.routing.routing import Routing
from dylora_moe.serving.engine.protocol import Engine
from dylora_moe.serving.guidance import Guidance, MapPoint, SkillMap, Weighted
from dylora_moe.skills.landscape import Landscape
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.screening import Screen, screen_of


@dataclass(frozen=True, eq=False)
class _Material:
    """What the engine hands out of a revision; never changed afterwards: a pool that becomes
    another revision takes new ones."""

    revision: PoolRevision
    library: SkillLibrary
    own: FeatureStatistics
    shared: SharedScatter


@dataclass(frozen=True, eq=False)
class _Known:
    material: _Material
    screen: Screen
    landscape: Landscape


@dataclass(frozen=True, eq=False)
class _Seen:
    revision: PoolRevision
    features: Float[Tensor, "1 d"]
    routing: Routing


class Guide:
    """Routes prompts on trial; any thread may ask.

    Args:
        engine: that has the model.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._known: _Known | None = None

    def map(self) -> SkillMap:
        """The map of skills of the revision that answers now.

        Raises:
            UnavailableError: the engine takes no work.
        """
        known = self._current(self._engine.state().revision)
        revision = known.material.revision
        aliases = {expert.expert_id: expert.alias for expert in revision.experts}
        placed = known.landscape.skills.tolist()
        return SkillMap(
            revision=revision.number,
            points=tuple(
                MapPoint(skill.name, aliases[skill.expert_id], skill.count, x, y)
                for skill, (x, y) in zip(revision.skills, placed, strict=True)
            ),
            foreign=_pair(known.landscape.foreign),
            shares=known.landscape.shares,
        )

    def route(self, prompt: str | Sequence[Turn]) -> Guidance:
        """Where a prompt, or a conversation, would go.

        Raises:
            UnavailableError: the engine takes no work.
            DataError: there is no turn, or it leaves no room in the context or in the engine.
        """
        # Here, not in the engine's thread: whoever asks waits for a long prompt, not everybody.
        tokens = self._engine.encode(prompt)
        seen = self._engine.call(partial(_look, prompt=tokens)).result()
        known = self._current(seen.revision.number)
        screened = known.screen(seen.features)
        nearest, names = int(screened.nearest[0]), _skill_names(known.material.revision)
        routing = seen.routing
        return Guidance(
            revision=seen.revision.number,
            weights=_weights(seen.revision, routing),
            none=float(routing.none[0]),
            to_none=bool(routing.to_none[0]),
            entropy=float(routing.entropy[0]),
            sparse=bool(routing.sparse[0]),
            strangeness=float(screened.scores[0]),
            threshold=known.screen.threshold,
            strange=bool(screened.strange[0]),
            nearest=names[known.screen.skill_ids[nearest]] if nearest >= 0 else None,
            place=_pair(known.landscape.place(seen.features)[0]),
        )

    def _current(self, number: int) -> _Known:
        """The screen and the map of this revision, or of one that came since."""
        with self._lock:
            if self._known is None or self._known.material.revision.number != number:
                material = self._engine.call(_material).result()
                screen = screen_of(material.library, material.own, shared=material.shared)
                self._known = _Known(material, screen, Landscape.of(screen))
            return self._known


def _material(live: LivePool) -> _Material:
    return _Material(live.revision, live.library, live.own_statistics, live.router.table.shared)


def _look(live: LivePool, prompt: Sequence[int]) -> _Seen:
    """The trunk and the gate, for one prompt's token ids."""
    features = token_features(live, [prompt])
    with torch.no_grad():
        routing = live.router(features.to(live.base.device))
    return _Seen(live.revision, features, routing)


def _weights(revision: PoolRevision, routing: Routing) -> tuple[Weighted, ...]:
    known = {expert.expert_id: expert for expert in revision.experts}
    found = zip(
        routing.experts, routing.weights[0].tolist(), routing.probabilities[0].tolist(), strict=True
    )
    named = [
        Weighted(known[name].alias, known[name].version, weight, probability)
        for name, weight, probability in found
        if max(weight, probability) > 1e-3
    ]
    return tuple(sorted(named, key=lambda one: (-one.weight, -one.probability)))


def _skill_names(revision: PoolRevision) -> dict[str, str]:
    return {skill.skill_id: skill.name for skill in revision.skills}


def _pair(point: Float[Tensor, " 2"]) -> tuple[float, float]:
    x, y = point.tolist()
    return x, y
