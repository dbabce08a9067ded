"""What a pool's history comes to, in one line and a few numbers.

The report and the command line both say this; neither counts for itself.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from dylora_moe.evaluation.history import History
from dylora_moe.evaluation.matrix import Matrices, build_matrices
from dylora_moe.evaluation.quantities import percent, plural, points
from dylora_moe.evaluation.steps import ARRIVAL, FAILED, UNFINISHED

POINTS_ALLOWED = 0.01
"""A fall of accuracy by at most this (one point), or by one generated row, is no forgetting."""

RISE_ALLOWED = 0.02
"""The same for a relative rise of the loss, where no accuracy was measured and no gate told its
tolerance."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The outcome of a pool's life so far.

    Attributes:
        verdicts: how often each verdict fell.
        worst_change: of the older skills, the largest fall of accuracy from its best since it was
            learned or revised (negative is worse), as a share; None where no accuracy of an older
            skill was measured.
        worst_rise: the largest relative rise of an older skill's loss over its lowest.
        forgotten: skills that lost more than is allowed (`POINTS_ALLOWED`, `RISE_ALLOWED`).
        seconds: time of all steps together.
        headline: the outcome in one line.
    """

    arrivals: int
    grown: int
    experts: int
    skills: int
    verdicts: dict[str, int]
    waiting: int
    rejected: int
    failed: int
    average_accuracy: float | None
    average_loss: float | None
    backward_transfer: float | None
    forgetting: float | None
    worst_change: float | None
    worst_skill: str | None
    worst_rise: float | None
    worst_rise_skill: str | None
    forgotten: tuple[str, ...]
    seconds: float | None
    tokens: int | None
    warnings: int
    headline: str
    unfinished: int = 0


def summary(history: History, matrices: Matrices | None = None) -> Summary:
    """The summary of a history; `matrices` saves building them again."""
    found = matrices or build_matrices(history)
    arrivals = [step for step in history.steps if step.kind == ARRIVAL]
    actions = Counter(step.action for step in history.steps)
    worst_change, worst_skill = _lowest(found.accuracy_changes, found.columns)
    fall, rise_skill = _lowest(
        tuple(None if rise is None else -rise for rise in found.loss_changes), found.columns
    )
    worst_rise = None if fall is None else 0.0 - fall
    forgotten = _forgotten(history, found)
    seconds = [step.seconds for step in history.steps if step.seconds is not None]
    tokens = [step.tokens for step in arrivals if step.tokens is not None]
    kept = _kept_line(worst_change, worst_skill, worst_rise, rise_skill, forgotten)
    grown = actions["created"]
    return Summary(
        arrivals=len(arrivals),
        grown=grown,
        experts=len(history.experts),
        skills=sum(skill.expert_id is not None for skill in history.skills),
        verdicts=dict(Counter(step.verdict for step in arrivals if step.verdict)),
        waiting=actions["waiting"],
        rejected=actions["rejected"],
        failed=actions[FAILED],
        average_accuracy=found.average_accuracy,
        average_loss=found.average_loss,
        backward_transfer=found.backward_transfer,
        forgetting=found.forgetting,
        worst_change=worst_change,
        worst_skill=worst_skill,
        worst_rise=worst_rise,
        worst_rise_skill=rise_skill,
        forgotten=forgotten,
        seconds=sum(seconds) if seconds else None,
        tokens=sum(tokens) if tokens else None,
        warnings=len(history.notices),
        headline=f"{plural(len(arrivals), 'arrival')}, {plural(grown, 'expert')} grown{kept}"
        if history.steps
        else "Nothing has arrived yet",
        unfinished=actions[UNFINISHED],
    )


def _forgotten(history: History, matrices: Matrices) -> tuple[str, ...]:
    allowed = next(
        (
            step.gate.tolerance
            for step in reversed(history.steps)
            if step.gate is not None and step.gate.tolerance is not None
        ),
        RISE_ALLOWED,
    )
    names = []
    for j, name in enumerate(matrices.columns):
        change, rise = matrices.accuracy_changes[j], matrices.loss_changes[j]
        row = history.latest[j]
        if change is not None:
            one_row = 1 / row.generated if row is not None and row.generated else 0.0
            # The small slack keeps a change of exactly one row on the allowed side of rounding.
            if change < -max(POINTS_ALLOWED, one_row) - 1e-9:
                names.append(name)
        elif rise is not None and rise > allowed:
            names.append(name)
    return tuple(names)


def _kept_line(
    change: float | None,
    skill: str | None,
    rise: float | None,
    rise_skill: str | None,
    forgotten: tuple[str, ...],
) -> str:
    if change is None and rise is None:
        return ""
    lost = "nothing forgotten" if not forgotten else f"forgotten in part: {', '.join(forgotten)}"
    if change is not None:
        return f", {lost}: worst change of an older skill {points(change)} ({skill})"
    sign = "+" if (rise or 0.0) > 0 else ""
    return f", {lost}: worst change of an older skill's loss {sign}{percent(rise)} ({rise_skill})"


def _lowest(
    values: tuple[float | None, ...], names: tuple[str, ...]
) -> tuple[float | None, str | None]:
    known = [(value, name) for value, name in zip(values, names, strict=True) if value is not None]
    return min(known, default=(None, None), key=lambda item: item[0])
