"""What happened to the pool, one step at a time, out of the registry's events.

A step is an arrival (whatever came of it), or an import, a removal or a rollback. Knows the kinds
of events; knows no scores and no runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dylora_moe.build.json_values import (
    as_float,
    as_floats,
    as_int,
    as_interval,
    as_pairs,
    as_text,
)
from dylora_moe.records import Event, Interval, PoolRevision

ARRIVAL = "arrival"
FAILED = "failed"
UNFINISHED = "unfinished"
_OF_A_RUN = ("trained", "router", "gate", "promoted", "rejected", "error", "warning")
STEP_ACTIONS = ("imported", "removed", "rolled back", "put back")
"""Actions without an arrival that still change what the pool can do: steps of their own."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the promotion gate measured: losses of older skills before and after, by skill."""

    promoted: bool
    tolerance: float | None
    before: Mapping[str, float]
    after: Mapping[str, float]
    rows_rescored: int | None

    @property
    def worst(self) -> tuple[str, float] | None:
        """The skill whose loss rose most, and its relative rise; None if no skill was older."""
        rises = {
            skill: (self.after[skill] - loss) / loss
            for skill, loss in self.before.items()
            if skill in self.after and loss > 0
        }
        return max(rises.items(), key=lambda item: item[1]) if rises else None


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the pool; what was not measured is None or empty.

    Attributes:
        number: counts from 1.
        kind: `arrival`, or one of `STEP_ACTIONS`.
        action: what was done ("created", "new version", "covered", "statistics", "waiting",
            "rejected"), "failed" or "unfinished" where nothing came of it yet, or the kind itself.
        threshold: separability above which the detector tells apart; None where it is not known.
        nearest: skill ids with their separability, nearest first.
        nearest_losses: token-mean answer loss of the nearest experts, in nats.
        similarity: number of each detector that looked.
        revision: number of the pool's revision after the step.
    """

    number: int
    kind: str
    name: str
    action: str = UNFINISHED
    rows: int | None = None
    train_rows: int | None = None
    validation_rows: int | None = None
    tokens: int | None = None
    verdict: str | None = None
    reason: str = ""
    detector: str = ""
    separability: Interval | None = None
    threshold: float | None = None
    fit: Interval | None = None
    nearest: tuple[tuple[str, float], ...] = ()
    nearest_losses: Mapping[str, float] = field(default_factory=dict)
    base_loss: float | None = None
    similarity: Mapping[str, float] = field(default_factory=dict)
    expert: str | None = None
    version: int | None = None
    skill: str | None = None
    seconds: float | None = None
    revision: int = 0
    run_id: str | None = None
    gate: GateResult | None = None


def read_steps(
    events: Sequence[Event], revisions: Sequence[PoolRevision]
) -> tuple[tuple[Step, ...], tuple[int | None, ...]]:
    """The steps, and for each event the index of the step it belongs to (None before the first).

    An event belongs to the step whose run it names; else to the latest arrival that it names, else
    to the latest step. An arrival told again after it broke off (resumed) is one step.
    """
    steps: list[Step] = []
    owners: list[int | None] = []
    current = min((revision.number for revision in revisions), default=0)
    for event in events:
        numbers = event.numbers
        if event.kind == ARRIVAL:
            step = _arrival(event, len(steps) + 1, current)
            if steps and steps[-1].name == step.name and steps[-1].action in (FAILED, UNFINISHED):
                steps[-1] = replace(step, number=len(steps))
            else:
                steps.append(step)
        elif event.kind == "promoted" and numbers.get("action") in STEP_ACTIONS:
            current = _revision_of(numbers, current, revisions)
            steps.append(_own_step(event, len(steps) + 1, current))
        owner = len(steps) - 1 if event.kind == ARRIVAL else _owner(event, steps)
        owners.append(owner)
        if owner is None:
            continue
        if steps[owner].run_id is None and event.kind in _OF_A_RUN:
            steps[owner] = replace(steps[owner], run_id=event.run_id)
        if event.kind == "promoted" and numbers.get("action") not in (*STEP_ACTIONS, "renamed"):
            current = _revision_of(numbers, current, revisions)
            steps[owner] = _promoted(steps[owner], numbers, current)
        elif event.kind == "promoted" and numbers.get("action") == "renamed":
            current = _revision_of(numbers, current, revisions)
        else:
            steps[owner] = _other(steps[owner], event)
    return tuple(steps), tuple(owners)


def _arrival(event: Event, number: int, revision: int) -> Step:
    numbers = event.numbers
    return Step(
        number=number,
        kind=ARRIVAL,
        name=as_text(numbers.get("arrival")) or f"arrival {number}",
        rows=as_int(numbers.get("rows")),
        train_rows=as_int(numbers.get("train_rows")),
        validation_rows=as_int(numbers.get("validation_rows")),
        tokens=as_int(numbers.get("tokens")),
        verdict=as_text(numbers.get("verdict")),
        reason=as_text(numbers.get("reason")) or event.message,
        detector=as_text(numbers.get("detector")) or "",
        separability=as_interval(numbers.get("separability")),
        threshold=as_float(numbers.get("threshold")),
        fit=as_interval(numbers.get("fit")),
        nearest=as_pairs(numbers.get("nearest")),
        nearest_losses=as_floats(numbers.get("nearest_losses")),
        base_loss=as_float(numbers.get("base_loss")),
        similarity=as_floats(numbers.get("similarity")),
        seconds=as_float(numbers.get("seconds")),
        revision=revision,
        run_id=event.run_id,
    )


def _own_step(event: Event, number: int, revision: int) -> Step:
    action = str(event.numbers["action"])
    expert, skill = as_text(event.numbers.get("expert")), as_text(event.numbers.get("skill"))
    step = Step(
        number=number,
        kind=action,
        name=as_text(event.numbers.get("arrival")) or skill or expert or action,
        reason=event.message,
        run_id=event.run_id,
    )
    return _promoted(step, event.numbers, revision)


def _promoted(step: Step, numbers: Mapping[str, Any], revision: int) -> Step:
    return replace(
        step,
        action=as_text(numbers.get("action")) or step.action,
        expert=as_text(numbers.get("expert")),
        version=as_int(numbers.get("version")),
        skill=as_text(numbers.get("skill")),
        seconds=as_float(numbers.get("seconds")) or step.seconds,
        revision=revision,
    )


def _other(step: Step, event: Event) -> Step:
    numbers = event.numbers
    if event.kind == "gate":
        gate = GateResult(
            promoted=bool(numbers.get("promoted")),
            tolerance=as_float(numbers.get("tolerance")),
            before=as_floats(numbers.get("before")),
            after=as_floats(numbers.get("after")),
            rows_rescored=as_int(numbers.get("rows_rescored")),
        )
        return replace(step, gate=gate)
    if event.kind in ("rejected", "waiting"):
        reason = as_text(numbers.get("reason")) or event.message or step.reason
        return replace(step, action=event.kind, reason=reason)
    if event.kind == "error" and step.action == UNFINISHED and _concerns(event, step):
        return replace(step, action=FAILED, reason=event.message or step.reason)
    return step


def _concerns(event: Event, step: Step) -> bool:
    if event.run_id is not None:
        return event.run_id == step.run_id
    return event.numbers.get("arrival") == step.name


def _same_run(steps: Sequence[Step], run_id: str | None) -> int | None:
    if run_id is None:
        return None
    return next((i for i, step in enumerate(steps) if step.run_id == run_id), None)


def _owner(event: Event, steps: Sequence[Step]) -> int | None:
    found = _same_run(steps, event.run_id)
    if found is not None:
        return found
    name = event.numbers.get("arrival")
    for index in reversed(range(len(steps))):
        if name is not None and steps[index].name == name:
            return index
    return len(steps) - 1 if steps else None


def _revision_of(
    numbers: Mapping[str, Any], current: int, revisions: Sequence[PoolRevision]
) -> int:
    told = as_int(numbers.get("revision"))
    if told is not None:
        return told
    children = [revision.number for revision in revisions if revision.parent == current]
    return min(children, default=current)
