"""Blocks that have converged learn no more, from the tap upwards.

Knows how far blocks have moved and which are to freeze; knows no loop. Blocks converge from below
(Raghu et al. 2017, SVCCA, section 4.2), and only what is frozen from the tap up to some block
without a gap saves anything but the optimizer's work: backward then ends above it (Brock et al.
2017, FreezeOut, who go by a schedule; Liu et al. 2021, AutoFreeze, who go by how gradients change).
Here a block has converged when its deltas `B A` moved less over an epoch than a share of what they
are.
"""

from __future__ import annotations

from collections.abc import Mapping


def learns_from(changes: Mapping[int, float], share: float) -> int:
    """The first block that has not converged; the last of all learns in any case.

    Args:
        changes: relative change of each block over an epoch, by its index.
        share: below which it has converged.
    """
    *others, last = sorted(changes)
    return next((block for block in others if changes[block] >= share), last)
