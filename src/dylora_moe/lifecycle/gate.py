"""The gate: a change is let in only if no older skill gets worse by more than a tolerance.

Pure: sees numbers, runs nothing. A skill has some dozens of validation rows, and one of them that
goes elsewhere moves their mean by several percent; so a skill counts as worse where the near end of
the interval over its rows lies beyond the tolerance, and not where the estimate does.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from dylora_moe.records import Interval
from dylora_moe.scoring.bootstrap import Paired, paired_bootstrap


@dataclass(frozen=True, slots=True)
class GateDecision:
    """Whether the change is let in, and by how much each older skill's loss rises (relative)."""

    promoted: bool
    changes: Mapping[str, Interval]
    reason: str


def decide_gate(
    rows: Mapping[str, Paired], tolerance: float, excused: Collection[str] = ()
) -> GateDecision:
    """Compares the routed pool's losses before and after a change, skill by skill.

    Args:
        rows: validation rows of every older skill, by name: mean answer loss after the change
            (`first`) and before it (`second`), weighted by their trained tokens.
        tolerance: relative rise of a skill's token-mean loss that is let through, e.g. 0.02.
        excused: skills the change is meant for and judged by another rule.

    Returns:
        Not promoted if the 95% interval (paired bootstrap over the rows) of any skill's rise lies
        wholly above the tolerance, or any loss is not finite.
    """
    changes: dict[str, Interval] = {}
    worst: tuple[str, Interval] | None = None
    for name, pair in rows.items():
        if name in excused:
            continue
        if not all(map(math.isfinite, pair.first)):
            return GateDecision(False, changes, f"{name} would have a loss that is not finite")
        changes[name] = rise(pair)
        if changes[name].low > tolerance and (worst is None or changes[name].low > worst[1].low):
            worst = name, changes[name]
    if worst is None:
        return GateDecision(True, changes, "no older skill got worse")
    name, found = worst
    return GateDecision(
        False,
        changes,
        f"{name} would get worse by {found.value:.1%} [{found.low:.1%}, {found.high:.1%}], more "
        f"than the tolerance of {tolerance:.1%}",
    )


def rise(pair: Paired) -> Interval:
    """Relative rise of a skill's token-mean loss with its interval over the rows."""
    if list(pair.first) == list(pair.second):
        return Interval(0.0, 0.0, 0.0)
    found = paired_bootstrap(pair.first, pair.second, weights=pair.weights, statistic="ratio")
    return Interval(found.value - 1.0, found.low - 1.0, found.high - 1.0)
