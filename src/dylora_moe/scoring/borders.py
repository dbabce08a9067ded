"""Were the borders of a stream found, and how late: detected switches against the true ones.

A position is where something new begins, counted in rows or in batches: the caller's unit, and the
unit of delays. Knows nothing of how a switch is detected. Precision, recall and delay within a
window are how change detectors are judged (Gama et al. 2014, "A survey on concept drift
adaptation"; Bifet et al. 2013, "CD-MOA").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BorderMatch:
    """A true border and the detection that found it."""

    border: int
    detected: int

    @property
    def delay(self) -> int:
        """How long after the border it was detected; negative before it."""
        return self.detected - self.border


@dataclass(frozen=True)
class BordersFound:
    """What a detector found of a stream's borders.

    Attributes:
        matches: borders that were found, in their order.
        missed: true borders that were not.
        false_alarms: detections that belong to no border.
    """

    matches: tuple[BorderMatch, ...]
    missed: tuple[int, ...]
    false_alarms: tuple[int, ...]

    @property
    def precision(self) -> float | None:
        """Share of the detections that found a border; None where nothing was detected."""
        return _share(len(self.matches), len(self.matches) + len(self.false_alarms))

    @property
    def recall(self) -> float | None:
        """Share of the borders that were found; None where the stream has none."""
        return _share(len(self.matches), len(self.matches) + len(self.missed))

    @property
    def f1(self) -> float | None:
        """Harmonic mean of both, 2 TP / (2 TP + FP + FN): 0 where all borders were missed or all
        alarms false, None where there was nothing to find and nothing was detected."""
        found = 2 * len(self.matches)
        return _share(found, found + len(self.missed) + len(self.false_alarms))

    @property
    def mean_delay(self) -> float | None:
        """Mean over the borders that were found; None where none was. What was missed has no
        delay, so read it beside the recall."""
        return _share(sum(match.delay for match in self.matches), len(self.matches))


def match_borders(
    borders: Sequence[int], detected: Sequence[int], *, tolerance: int, early: int = 0
) -> BordersFound:
    """Matches true borders with detections, one to one.

    The rule: the true borders are gone through in the order of time, and each takes the earliest
    detection that is left from `early` before it to `tolerance` behind it, both ends included.
    As all windows are equally long, no other rule finds more borders.

    Args:
        borders: where the truth switches; distinct.
        detected: where a switch was detected; distinct, in any order.
        tolerance: how late a detection still counts.
        early: how early one does: 0 for a hard switch, which nobody can know before; half the
            mixed zone for a blurred one.

    Raises:
        ValueError: a negative window, or a position that is named twice.
    """
    if tolerance < 0 or early < 0:
        raise ValueError(f"tolerance {tolerance} and early {early} must not be negative")
    for name, positions in (("borders", borders), ("detections", detected)):
        if len(set(positions)) < len(positions):
            raise ValueError(f"two {name} at one position; name each position once")
    matches, missed, left = [], [], sorted(detected)
    for border in sorted(borders):
        window = range(border - early, border + tolerance + 1)
        first = next((position for position in left if position in window), None)
        if first is None:
            missed.append(border)
        else:
            left.remove(first)
            matches.append(BorderMatch(border, first))
    return BordersFound(tuple(matches), tuple(missed), tuple(left))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
