"""What can be known to go wrong with arrivals before the first one is learned.

Tokenises, and looks names up; runs no block of the base and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from dylora_moe.lifecycle.gathering import fitting
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.names import checked_name, find_skill, free_name
from dylora_moe.lifecycle.recipe import Order, Recipe
from dylora_moe.records import Arrival, PoolRevision
from dylora_moe.text.template import encode_all

_EMPTY = PoolRevision(0, None, (), (), None, None, note="")


def check_arrivals(
    live: LivePool, recipe: Recipe, incoming: Sequence[tuple[Arrival, Order]]
) -> None:
    """Raises what learning these arrivals in order would raise for sure, or for want of a name.

    Raises:
        ConfigError: the recipe's limit is beyond the model's context.
        DataError: a row that is too long or cannot be encoded.
        PoolError: `into` names a skill that neither is there nor can come of an earlier arrival,
            or a name that no expert can have.
    """
    coming: set[str] = set()
    for arrival, order in incoming:
        _check_rows(live, recipe, arrival)
        if order.into is not None and order.into not in coming:
            find_skill(live.revision, order.into)
        if order.as_new and order.name is not None:
            coming.add(checked_name(live.revision, order.name))
        elif order.name is not None:
            # Taken or not is only known with the verdict: learned before, it is its own name.
            coming.add(checked_name(_EMPTY, order.name))
        elif order.into is None:
            coming |= {free_name(_EMPTY, arrival.name), free_name(live.revision, arrival.name)}
    for name, rows in recipe.evaluation.items():
        _check_rows(live, recipe, Arrival(f"evaluation.{name}", rows))


def _check_rows(live: LivePool, recipe: Recipe, arrival: Arrival) -> None:
    gathered = fitting(live, recipe, arrival)
    if not recipe.drop_long:
        rows = (*arrival.examples, *(arrival.validation or ()))
        encode_all(rows, live.base.tokenizer, live.fmt, gathered.limit)
