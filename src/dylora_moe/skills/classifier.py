"""Novelty by the classifier two-sample test; the default.

Knows the library's stored features; knows nothing of experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.novelty import Limits, Measurement, NoveltyDetector
from dylora_moe.skills.separability import separability


@dataclass(frozen=True, slots=True)
class ClassifierTwoSample(NoveltyDetector):
    """AUC against the nearest skills; the lowest counts.

    Attributes:
        threshold: on the AUC.
        limits: what an arrival needs to be judged.
        candidates: skills tested, nearest by mean first.
        seed: of the folds.
    """

    threshold: float = 0.80
    limits: Limits = field(default_factory=Limits)
    candidates: int = 3
    seed: int = 0

    @property
    def name(self) -> str:
        return "classifier"

    def measure(self, features: Float[Tensor, "batch d"], library: SkillLibrary) -> Measurement:
        """AUC against each candidate."""
        samples = features.shape[0]
        if samples < 2:
            return Measurement(None, (), samples)
        tested = [
            (separability(features, library[skill_id].features, self.seed), skill_id)
            for skill_id, _ in library.nearest(features, self.candidates)
            if library[skill_id].features.shape[0] >= 2
        ]
        tested.sort(key=lambda pair: pair[0].value)
        nearest = tuple((skill_id, found.value) for found, skill_id in tested)
        return Measurement(tested[0][0] if tested else None, nearest, samples)
