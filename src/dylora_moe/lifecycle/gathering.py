"""The rows an arrival is judged by: without those that are too long, with those that waited for it.

Knows the recipe's limit and the waiting room; gives no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dylora_moe.errors import DataError
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.recipe import Recipe
from dylora_moe.records import Arrival, Event, Example
from dylora_moe.skills.separability import separability

TRAFFIC = "mixed/traffic"
"""What rows wait under that came mixed: of many kinds, so they join no arrival. No file has such a
name."""
_ALIKE = 0.8
"""Separability below which rows that wait are of an arrival's kind: the novelty test's default."""
_FEW = 6
"""Rows below which separability tells no kinds apart, and the name alone says what belongs."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """An arrival as it is learned.

    Attributes:
        left_out: rows that are longer than the limit.
        limit: tokens that a row may have; None for no limit.
        joined: the batches that waited and are part of it now, with their rows.
    """

    arrival: Arrival
    left_out: tuple[Example, ...] = ()
    limit: int | None = None
    joined: Mapping[str, int] = field(default_factory=dict)

    @property
    def waited(self) -> int:
        """How many rows had waited."""
        return sum(self.joined.values())

    @property
    def told(self) -> Event | None:
        """The warning that rows were left out; None where none were."""
        if not self.left_out:
            return None
        name, count, first = self.arrival.name, len(self.left_out), self.left_out[0].origin
        message = f"{name}: rows of more than {self.limit} tokens are left out: {count}"
        if first:
            message += f", the first at {first}"
        numbers = {"what": message, "arrival": name, "rows": count, "first": first}
        return Event("warning", numbers, message)


def fitting(live: LivePool, recipe: Recipe, arrival: Arrival) -> Gathered:
    """The arrival without the rows that are longer than the recipe's limit, where it says so; else
    as it is, and encoding refuses such rows.

    Raises:
        ConfigError: the limit is beyond the model's context.
        DataError: no row is short enough.
    """
    limit = live.limit(recipe.max_length)
    if not recipe.drop_long:
        return Gathered(arrival, limit=limit)
    rows, left = live.within(arrival.examples, limit)
    if left and not rows:
        raise DataError(
            f"{arrival.name}: all {len(left)} rows have more than {limit} tokens; shorten them, or "
            "raise --max-length if the model's context allows it"
        )
    validation = arrival.validation
    if validation is not None:
        held_out, more = live.within(validation, limit)
        validation, left = tuple(held_out), [*left, *more]
    return Gathered(
        replace(arrival, examples=tuple(rows), validation=validation), tuple(left), limit
    )


def joined(
    live: LivePool,
    recipe: Recipe,
    gathered: Gathered,
    waiting: Sequence[tuple[str, Sequence[Example]]],
) -> Gathered:
    """The arrival with the waiting rows that are of its kind.

    Where both have the same prompt with different answers, the arrival's is the newer word.

    Raises:
        DataError: a row is longer than the limit, and the recipe leaves none out.
    """
    arrival = gathered.arrival
    if not waiting or not arrival.examples:
        return gathered
    ours = live.encode(arrival.examples, max_length=recipe.max_length).features
    own = (*arrival.examples, *(arrival.validation or ()))
    known = {example.key for example in own}
    # A plain text has no prompt that it could share with another.
    asked = {example.turns[:-1] for example in own} - {()}
    batches: dict[str, int] = {}
    chosen, left = [], list(gathered.left_out)
    for name, stored in waiting:
        rows, longer = (
            live.within(stored, gathered.limit) if recipe.drop_long else (list(stored), [])
        )
        if not rows or name == TRAFFIC:
            continue
        theirs = live.encode(rows, max_length=recipe.max_length).features
        few = min(len(ours), len(theirs)) < _FEW
        if name == arrival.name if few else separability(ours, theirs).value < _ALIKE:
            fit = [row for row in rows if row.key in known or row.turns[:-1] not in asked]
            batches[name] = len(fit)
            chosen += fit
            left += longer
    extra = {row.key: row for row in chosen if row.key not in known}
    return replace(
        gathered,
        arrival=replace(arrival, examples=(*arrival.examples, *extra.values())),
        left_out=tuple({row.key: row for row in left}.values()),
        joined=batches,
    )
