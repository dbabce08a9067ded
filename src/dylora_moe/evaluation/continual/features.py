"""Features of a stream's rows, of all kinds that novelty detectors compare, taken once.

Runs the base on a pool's terms (format, tap), with no expert; knows no detector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from dylora_moe.lifecycle.answer_gradients import answer_gradients
from dylora_moe.lifecycle.last_states import last_layer_states
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.recipe import Representation
from dylora_moe.records import Example


def row_features(
    live: LivePool, rows: Sequence[Example], *, gradients: bool = True
) -> Mapping[Representation, Float[Tensor, "n _"]]:
    """Tap features, mean last-layer states and gradients of rows, in their order.

    Args:
        live: any pool on the base, one without experts too.
        rows: of a stream; with answers.
        gradients: whether to take them too, which costs as much again as the states.

    Raises:
        DataError: a row is longer than the base's context.
    """
    encoded = live.encode(rows, granularity="sequence")
    found: dict[Representation, Tensor] = {
        "tap": encoded.features,
        "last-layer": last_layer_states(live, encoded),
    }
    if gradients:
        found["gradient"] = answer_gradients(live, encoded)
    return found
