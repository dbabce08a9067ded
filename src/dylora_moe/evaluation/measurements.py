"""What trainings, router fits and routing changes measured, out of the registry's events.

Knows the numbers of the event kinds `trained`, `router`, `strategy`, `warning` and `error`; the
steps they belong to are handed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dylora_moe.build.json_values import as_float, as_int, as_text
from dylora_moe.records import Event

Owners = Sequence[int | None]
"""For each event the index of the step it belongs to."""


@dataclass(frozen=True, slots=True)
class Training:
    """One training of an expert, as its `trained` event tells it; `step` counts from 1."""

    step: int | None
    expert: str
    version: int | None
    phases: tuple[str, ...]
    steps: int | None
    tokens: int | None
    seconds: float | None
    best_loss: float | None
    flops: float | None
    peak_memory_bytes: float | None
    tokens_per_second: float | None
    padding_fraction: float | None
    trainable_parameters: int | None
    trainable_share: float | None
    n_bytes: float | None


@dataclass(frozen=True, slots=True)
class RouterFit:
    """One fit of the router; shares from 0 to 1, of rows that were held out of the fit."""

    step: int | None
    classes: int | None
    none_threshold: float | None
    own_to_none: float | None
    foreign_to_none: float | None
    accuracy: float | None
    fit_seconds: float | None
    temperature: float | None


@dataclass(frozen=True, slots=True)
class StrategyChange:
    """A change of the share of inputs that are routed densely."""

    step: int | None
    dense_before: float | None
    dense_after: float | None


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning or an error."""

    step: int | None
    kind: str
    text: str
    created_at: str


def _of_kind(kind: str, events: Sequence[Event], owners: Owners) -> list[tuple[int | None, Event]]:
    return [
        (None if owner is None else owner + 1, event)
        for event, owner in zip(events, owners, strict=True)
        if event.kind == kind
    ]


def read_trainings(events: Sequence[Event], owners: Owners) -> tuple[Training, ...]:
    found = []
    for step, event in _of_kind("trained", events, owners):
        numbers = event.numbers
        found.append(
            Training(
                step=step,
                expert=as_text(numbers.get("expert")) or "",
                version=as_int(numbers.get("version")),
                phases=_phase_names(numbers.get("phases")),
                steps=as_int(numbers.get("steps")),
                tokens=as_int(numbers.get("tokens")),
                seconds=as_float(numbers.get("seconds")),
                best_loss=as_float(numbers.get("best_loss")),
                flops=as_float(numbers.get("flops")),
                peak_memory_bytes=as_float(numbers.get("peak_memory_bytes")),
                tokens_per_second=as_float(numbers.get("tokens_per_second")),
                padding_fraction=as_float(numbers.get("padding_fraction")),
                trainable_parameters=as_int(numbers.get("trainable_parameters")),
                trainable_share=as_float(numbers.get("trainable_share")),
                n_bytes=as_float(numbers.get("bytes")),
            )
        )
    return tuple(found)


def _phase_names(value: object) -> tuple[str, ...]:
    """Phases are told by name, or as mappings with a name and numbers."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return ()
    return tuple(
        str(item.get("name", "")) if isinstance(item, Mapping) else str(item) for item in value
    )


def read_router_fits(events: Sequence[Event], owners: Owners) -> tuple[RouterFit, ...]:
    return tuple(
        RouterFit(
            step=step,
            classes=as_int(event.numbers.get("classes")),
            none_threshold=as_float(event.numbers.get("none_threshold")),
            own_to_none=as_float(event.numbers.get("own_to_none")),
            foreign_to_none=as_float(event.numbers.get("foreign_to_none")),
            accuracy=as_float(event.numbers.get("accuracy_after")),
            fit_seconds=as_float(event.numbers.get("fit_seconds")),
            temperature=as_float(event.numbers.get("temperature")),
        )
        for step, event in _of_kind("router", events, owners)
    )


def read_strategies(events: Sequence[Event], owners: Owners) -> tuple[StrategyChange, ...]:
    return tuple(
        StrategyChange(
            step,
            as_float(event.numbers.get("dense_share_before")),
            as_float(event.numbers.get("dense_share_after")),
        )
        for step, event in _of_kind("strategy", events, owners)
    )


def read_notices(events: Sequence[Event], owners: Owners) -> tuple[Notice, ...]:
    return tuple(
        Notice(
            step=None if owner is None else owner + 1,
            kind=event.kind,
            text=event.message or as_text(event.numbers.get("what")) or event.kind,
            created_at=event.created_at,
        )
        for event, owner in zip(events, owners, strict=True)
        if event.kind in ("warning", "error")
    )
