"""How one pass gets its gates: told by the caller, from cached features, or on the way at the tap.

Knows router, experts and tap; knows nothing of labels, losses or generation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dylora_moe.errors import RoutingError
from dylora_moe.experts.gates import Gates
from dylora_moe.experts.manager import ExpertManager
from dylora_moe.foundation.tap import Hiddens, TapReader, pool_features
from dylora_moe.records import BASE_NAME
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.routing.routing import Routing


def gates_of(routing: Gates | Routing, segment_ids: Tensor | None = None) -> Gates | None:
    """The gates of a decision: experts that nobody in the batch was given are dropped.

    Args:
        routing: weights per row, or per segment of a packed batch.
        segment_ids: spreads them over the tokens of each segment.

    Returns:
        None where no expert is left.
    """
    gates = Gates.chosen(routing.experts, routing.weights)
    return gates if gates is None or segment_ids is None else gates.per_token(segment_ids)


def prompt_mask_of(
    inputs: Mapping[str, Any], prompt_mask: Tensor | None, labels: Tensor | None
) -> Bool[Tensor, "batch seq"]:
    """The tokens that routing may pool over, where the caller names no expert.

    Raises:
        RoutingError: it cannot be told from the inputs.
    """
    if prompt_mask is not None:
        return prompt_mask.bool()
    if labels is not None:
        raise RoutingError(
            "labels without prompt_mask: routing must not see the answers; pass the mask that "
            "text.batching makes, or name the expert"
        )
    cache = inputs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise RoutingError(
            "a continued cache holds no prompt to route by; pass gates=output.routing of the "
            "pass that read the prompt"
        )
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"]).bool() if mask is None else mask.bool()


def check_one_choice(expert: str | None, gates: Gates | Routing | None) -> None:
    """RoutingError where the caller names both an expert and gates."""
    if expert is not None and gates is not None:
        raise RoutingError("both gates and an expert are given; pass one of the two")


@dataclass(frozen=True, slots=True)
class Passes:
    """Binds gates to one pass and takes them back when it ends, whatever happens in it."""

    router: DynamicHybridRouter
    experts: ExpertManager
    tap: TapReader
    device: torch.device

    @contextmanager
    def bound(self, gates: Gates | None) -> Iterator[None]:
        """Within it the mixture layers use these gates."""
        with self.experts.slot.bound(None):
            self.give(gates)
            yield

    def give(self, gates: Gates | None) -> None:
        """Gives the running pass its gates, within `bound`; their experts come to the device."""
        self.experts.touch(() if gates is None else gates.experts)
        self.experts.slot.current = gates

    @contextmanager
    def told(
        self,
        gates: Gates | Routing | None,
        expert: str | None,
        rows: int,
        segment_ids: Tensor | None,
    ) -> Iterator[list[Routing]]:
        """The caller's choice, or the pinned expert.

        Args:
            gates: weights per row or segment.
            expert: a name, `base`, or None for the pinned one.
            rows: of the batch.
            segment_ids: of a packed batch.

        Raises:
            RoutingError: both are given, or gates of another number of rows.
        """
        check_one_choice(expert, gates)
        if gates is not None:
            found = gates.weights.shape[0]
            if segment_ids is None and found != rows:
                raise RoutingError(
                    f"gates for {found} rows and a batch of {rows}; give one for each row"
                )
            choice = gates_of(gates, segment_ids)
        else:
            name = expert if expert is not None else self.experts.pinned
            # One row counts for every row of the batch.
            is_base = name is None or name == BASE_NAME
            choice = None if is_base else Gates.only(str(name), 1, self.device)
        with self.bound(choice):
            yield []

    @contextmanager
    def routed(
        self, features: Float[Tensor, "rows d_features"], segment_ids: Tensor | None
    ) -> Iterator[list[Routing]]:
        """Routing by features that are known before the pass."""
        routing = self.router(features)
        with self.bound(gates_of(routing, segment_ids)):
            yield [routing]

    @contextmanager
    def listening(
        self, prompt_mask: Bool[Tensor, "batch seq"], segment_ids: Tensor | None
    ) -> Iterator[list[Routing]]:
        """Routing on the way; the list holds it once the pass is over."""
        routings: list[Routing] = []

        def at_the_tap(hiddens: Hiddens) -> None:
            routing = self.router(pool_features(hiddens, prompt_mask, segment_ids))
            routings.append(routing)
            self.give(gates_of(routing, segment_ids))

        with self.bound(None), self.tap.listening(at_the_tap):
            yield routings
