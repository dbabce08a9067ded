"""Novelty over time: a test's separability as an exponential moving average over arrivals.

Knows another test and what the arrival before came to; keeps nothing. The average's whole state is
one number, the separability that the last verdict was given on. A pool's events hold it, so the
average goes on in the next process, and starts anew when the caller hands in none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from dylora_moe.records import Interval
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.novelty import Limits, Measurement, NoveltyDetector


@dataclass(frozen=True, slots=True)
class Smoothed(NoveltyDetector):
    """`share * before + (1 - share) * measured`, against the other test's own threshold.

    Attributes:
        detector: the test.
        share: of what was before, in [0, 1).
        before: the average after the last arrival; None where none came since the experts changed.
    """

    detector: NoveltyDetector
    share: float
    before: float | None = None

    @property
    def name(self) -> str:
        return smoothed_name(self.detector.name)

    @property
    def threshold(self) -> float:
        return self.detector.threshold

    @property
    def limits(self) -> Limits:
        return self.detector.limits

    def measure(self, features: Float[Tensor, "batch d"], library: SkillLibrary) -> Measurement:
        """The other test's measurement with its separability averaged.

        What was before is taken as given, so the interval shrinks with the arrival's share. The
        nearest skills keep the numbers that were measured.
        """
        found = self.detector.measure(features, library)
        now, before, share = found.separability, self.before, self.share
        if now is None or before is None:
            return found
        ends = (share * before + (1 - share) * end for end in (now.value, now.low, now.high))
        return replace(found, separability=Interval(*ends))


def smoothed_name(name: str) -> str:
    """What the smoothed form of a test is called: its separability is another number."""
    return f"{name}-smoothed"
