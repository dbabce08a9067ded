"""What there is to search: settings by their dotted keys, with the values each may take.

Knows settings; knows neither models nor how a search goes.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dylora_moe.config import LearnSettings
from dylora_moe.errors import ConfigError
from dylora_moe.parsing import parse

Value = float | int | str | bool
SEEDING = "seeding"
"""Whether there is a seeding phase; its other keys count only where there is."""


RANK = "expert.rank"


@dataclass(frozen=True)
class Between:
    """Numbers between two ends, by their logarithm."""

    low: float
    high: float


@dataclass(frozen=True)
class OneOf:
    """Values without an order, or few of them."""

    values: tuple[Value, ...]


Dimension = Between | OneOf
Space = Mapping[str, Dimension]

SPACE: Space = {
    "consolidation.learning_rate": Between(2e-4, 6e-3),
    "consolidation.epochs": OneOf((1.0, 2.0, 3.0, 4.0, 6.0)),
    "consolidation.batch_size": OneOf((4, 8, 16)),
    SEEDING: OneOf((True, False)),
    "seeding.learning_rate": Between(4e-4, 1e-2),
    RANK: OneOf((2, 4, 8, 16, 32)),
    "expert.targets": OneOf(("attention", "all-linear")),
}
"""Everything that is searched where nobody says what. With the rank goes `expert.alpha`, so that
their ratio stays."""


def chosen(start: LearnSettings, keys: Sequence[str] = ()) -> dict[str, Dimension]:
    """The dimensions of these keys, all where none are named; each holds what `start` has.

    Raises:
        ConfigError: a key that is not searched, or a search for the rank alone of experts whose
            rank grows.
    """
    for key in keys:
        if key not in SPACE:
            near = difflib.get_close_matches(key, SPACE, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(SPACE)}"
            raise ConfigError(f"--search {key}: nothing is searched under this key; {hint}")
    if set(keys) == {RANK} and start.expert.max_rank is not None:
        raise ConfigError(
            f"--search {RANK}: with expert.max_rank={start.expert.max_rank} ranks grow while they "
            "train, so none of them would be measured; leave one of the two out"
        )
    usual = values_of(start, SPACE)
    for key in keys:
        if key not in usual:
            raise ConfigError(
                f"--search {key}: the settings have no one value there to start from (a phase that "
                "is off, or a list of layers); leave it out, or the setting"
            )
    return {key: _holding(SPACE[key], usual[key]) for key in keys or SPACE if key in usual}


def each_of(space: Space) -> tuple[dict[str, Value], ...]:
    """Every point of a space of one key with few values, which is tried whole; of a larger one
    none."""
    if len(space) != 1:
        return ()
    ((key, dimension),) = space.items()
    if isinstance(dimension, Between):
        return ()
    return tuple({key: value} for value in dimension.values)


def values_of(settings: LearnSettings, space: Space) -> dict[str, Value]:
    """What the settings have under the keys of the space; without those of a seeding phase that is
    off, and without targets that are a list."""
    flat = _flat(settings.model_dump())
    flat[SEEDING] = settings.seeding is not None
    return {key: flat[key] for key in space if key in flat and not isinstance(flat[key], tuple)}


def with_values(start: LearnSettings, values: Mapping[str, Value]) -> LearnSettings:
    """`start` with other values under some keys."""
    found = start.model_dump()
    seeded = values.get(SEEDING, start.seeding is not None)
    if not seeded:
        found[SEEDING] = None
    elif found[SEEDING] is None:
        found[SEEDING] = LearnSettings().model_dump()[SEEDING]
    for key, value in values.items():
        first, _, last = key.partition(".")
        if last and found[first] is not None:
            found[first][last] = value
    found["expert"]["alpha"] = found["expert"]["rank"] * (start.expert.alpha / start.expert.rank)
    return parse(LearnSettings, found, "tune")


def differences(settings: LearnSettings) -> dict[str, Any]:
    """Dotted keys whose values are not the defaults, as `--set` takes them."""
    usual, found = _flat(LearnSettings().model_dump()), _flat(settings.model_dump())
    changed = {key: value for key, value in found.items() if usual.get(key) != value}
    if settings.seeding is None:
        changed[SEEDING] = None
    return changed


def _holding(dimension: Dimension, value: Value) -> Dimension:
    if isinstance(dimension, Between):
        number = float(value)
        return Between(min(dimension.low, number), max(dimension.high, number))
    if value in dimension.values:
        return dimension
    return replace(dimension, values=(*dimension.values, value))


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Groups as dotted keys; what holds no keys as it is, and a group that is off not at all."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        # The names of evaluation sets are a person's and may hold dots.
        if isinstance(value, Mapping) and key != "evaluation":
            found |= {f"{key}.{inner}": one for inner, one in _flat(value).items()}
        elif value is not None or key != SEEDING:
            found[key] = value
    return found
