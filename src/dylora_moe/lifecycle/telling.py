"""What the reporters of a run are told beside its training: what the step came to.

Knows a step's events and scores; knows nothing of where a reporter writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack, closing

from dylora_moe.lifecycle.scorecard import Scorecard
from dylora_moe.lifecycle.step import Step
from dylora_moe.ports import Reporter, Run
from dylora_moe.records import Event


class RunReporters:
    """Opens each run's reporter once and closes all of them at the end of the step.

    Args:
        make: makes the reporter of a run.
    """

    def __init__(self, make: Callable[[Run], Reporter]) -> None:
        self._make, self._open, self._stack = make, dict[str, Reporter](), ExitStack()

    def __call__(self, run: Run) -> Reporter:
        if run.id not in self._open:
            self._open[run.id] = self._stack.enter_context(closing(self._make(run)))
        return self._open[run.id]

    def close(self) -> None:
        self._stack.close()


def report_step(step: Step, run: Run, routed: Event, gated: Event, card: Scorecard) -> None:
    """Logs the verdict's numbers, the router's, the gate's and every skill's score after it.

    Args:
        routed, gated: the events `router` and `gate`.
        card: scores of the changed pool, promoted or not.
    """
    verdict, router = step.judgement.verdict, routed.numbers
    found: dict[str, float | None] = {
        "arrival/separability": verdict.separability.value if verdict.separability else None,
        "arrival/fit": verdict.fit.value if verdict.fit else None,
        "arrival/similarity": verdict.nearest[0][1] if verdict.nearest else None,
        "router/accuracy": router["accuracy_after"],
        "router/none_threshold": router["none_threshold"],
        "router/own_to_none": router["own_to_none"],
        "router/temperature": router["temperature"],
    }
    for name, rise in gated.numbers["rises"].items():
        found[f"gate/{name}_rise"] = rise["value"]
    for skill in card.skills.values():
        found[f"score/{skill.name}_loss"] = skill.loss
        found[f"score/{skill.name}_accuracy"] = skill.accuracy
    found |= {f"expert_usage/{name}": share for name, share in _usage(card).items()}
    known = {key: value for key, value in found.items() if value is not None}
    # Without a step: these belong to the whole run, not to one of its updates.
    step.reporter(run).log({k: value for k, value in known.items() if math.isfinite(value)})


def _usage(card: Scorecard) -> dict[str, float]:
    """Mean weight of each expert, by id, and of the base over all skills' validation rows."""
    rows = sum(len(skill.rows) for skill in card.skills.values())
    totals: dict[str, float] = {}
    for skill in (one for one in card.skills.values() if one.rows):
        for name, share in skill.shares.items():
            totals[name] = totals.get(name, 0.0) + share * len(skill.rows) / rows
    return totals
