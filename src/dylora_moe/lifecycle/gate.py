"""The gate: a change is let in only if no older skill gets worse by more than a tolerance.

Pure: sees numbers, runs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GateDecision:
    """Whether the change is let in, and by how much each older skill's loss moved (relative)."""

    promoted: bool
    changes: Mapping[str, float]
    reason: str


def decide_gate(
    before: Mapping[str, float],
    after: Mapping[str, float],
    tolerance: float,
    excused: Collection[str] = (),
) -> GateDecision:
    """Compares token-mean validation losses of the routed pool before and after a change.

    Args:
        before: loss of every older skill, by name.
        after: the same skills' loss under the change.
        tolerance: relative rise that is let through, e.g. 0.02.
        excused: skills the change is meant for and judged by another rule.

    Returns:
        Not promoted if any skill that is not excused rises by more than the tolerance, or has no
        finite loss any more.
    """
    changes = {
        name: after[name] / loss - 1.0 if loss > 0 else after[name]
        for name, loss in before.items()
        if name not in excused
    }
    # `not <=` instead of `>`: a loss that is NaN must not pass.
    worse = {name: change for name, change in changes.items() if not change <= tolerance}
    if not worse:
        return GateDecision(True, changes, "no older skill got worse")
    name, change = max(worse.items(), key=lambda item: item[1])
    return GateDecision(
        False,
        changes,
        f"{name} would get worse by {change:.1%}, more than the tolerance of {tolerance:.1%}",
    )
