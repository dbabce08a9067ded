"""Novelty by the gate's doubt: inputs that no expert claims leave it with high entropy.

Knows a function from features to entropies, which the caller takes from its router.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from dylora_moe.skills.cosine import mean_interval
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.novelty import Limits, Measurement, NoveltyDetector


@dataclass(frozen=True, slots=True)
class RouterEntropy(NoveltyDetector):
    """Novel where the mean entropy of the routing is above a bound.

    Attributes:
        entropy_of: entropy of each input's routing in nats.
        threshold: on the mean entropy.
        limits: what an arrival needs to be judged.
        candidates: skills named as nearest, by their means.
    """

    entropy_of: Callable[[Float[Tensor, "batch d"]], Float[Tensor, " batch"]]
    threshold: float = 0.5
    limits: Limits = field(default_factory=lambda: Limits(settled=float("inf")))
    candidates: int = 3

    @property
    def name(self) -> str:
        return "router-entropy"

    def measure(self, features: Float[Tensor, "batch d"], library: SkillLibrary) -> Measurement:
        """Mean entropy with its interval over the examples."""
        samples = features.shape[0]
        if samples == 0 or len(library) == 0:
            return Measurement(None, (), samples)
        entropies = self.entropy_of(features).detach().double().cpu().tolist()
        nearest = library.nearest(features, self.candidates)
        return Measurement(mean_interval(entropies), nearest, samples)
