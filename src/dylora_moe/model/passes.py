"""How one pass gets its gates: told by the caller, from cached features, or on the way at the tap.

Knows router, experts and tap; knows nothing of labels, losses or generation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dylora_moe.errors import RoutingError
from dylora_moe.experts.gates import Gates
from dylora_moe.experts.manager import ExpertManager
from dylora_moe.foundation.base import Base
from dylora_moe.foundation.cache_name import cache_of
from dylora_moe.foundation.tap import Hiddens, TapReader, pool_features, running_features
from dylora_moe.foundation.trunk import TrunkBatch
from dylora_moe.model.prefix_cache import PrefixCache
from dylora_moe.records import BASE_NAME
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.routing.routing import Routing


def gates_of(routing: Gates | Routing, segment_ids: Tensor | None = None) -> Gates | None:
    """The gates of a decision: experts that nobody in the batch was given are dropped.

    Args:
        routing: weights per row, per segment of a packed batch, or per token.
        segment_ids: spreads weights per segment over the tokens of each.

    Returns:
        None where no expert is left.
    """
    if isinstance(routing, Gates) and routing.uniform:
        # Every weight is one: there is nothing to look for, and no device to wait for.
        gates: Gates | None = routing
    else:
        gates = Gates.chosen(routing.experts, routing.weights)
    if gates is None or segment_ids is None or gates.weights.dim() == 3:
        return gates
    return gates.per_token(segment_ids)


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
    cache = cache_of(inputs)
    if cache is not None and cache.get_seq_length() > 0:
        raise RoutingError(
            "a continued cache holds no prompt to route by; pass gates=output.routing of the "
            "pass that read the prompt"
        )
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"]).bool() if mask is None else mask.bool()


def token_mask_of(attention_mask: Tensor | None, hidden: Tensor) -> Bool[Tensor, "batch seq"]:
    """False on padding, for the tokens of this pass: the last ones where a cache holds others."""
    batch, seq = hidden.shape[:2]
    if attention_mask is None:
        return torch.ones(batch, seq, dtype=torch.bool, device=hidden.device)
    return attention_mask[:, -seq:].bool().to(hidden.device)


def check_one_choice(expert: str | None, gates: Gates | Routing | None) -> None:
    """RoutingError where the caller names both an expert and gates."""
    if expert is not None and gates is not None:
        raise RoutingError("both gates and an expert are given; pass one of the two")


def check_packed(base: Base, attention_mask: Tensor | None, position_ids: Tensor | None) -> None:
    """RoutingError where packed rows would see each other."""
    if not base.anatomy.packs:
        raise RoutingError(
            f"{base.name} takes no position ids, so packed rows would see each other; "
            "switch packing off"
        )
    if attention_mask is not None or position_ids is None:
        raise RoutingError(
            "packed rows would see each other; pass position_ids that start anew with each row "
            "and no attention_mask"
        )


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
        shape: Sequence[int],
        segment_ids: Tensor | None,
    ) -> Iterator[list[Routing]]:
        """The caller's choice, or the pinned expert.

        Args:
            gates: weights per row or segment, or per token.
            expert: a name, `base`, or None for the pinned one.
            shape: rows and tokens of the batch.
            segment_ids: of a packed batch.

        Raises:
            RoutingError: both are given, or gates of another number of rows.
        """
        check_one_choice(expert, gates)
        if gates is not None:
            found = gates.weights.shape[:-1]
            if len(found) == 1 and segment_ids is None and found[0] != shape[0]:
                raise RoutingError(
                    f"gates for {found[0]} rows and a batch of {shape[0]}; give one for each row"
                )
            if len(found) == 2 and found != torch.Size(shape):
                raise RoutingError(
                    f"gates per token for {list(found)} and a batch of {list(shape)}; give one for "
                    "each token of this pass"
                )
            choice = gates_of(gates, segment_ids)
        else:
            name = expert if expert is not None else self.experts.pinned
            # One row counts for every row of the batch.
            is_base = name is None or name == BASE_NAME
            choice = None if is_base else Gates.only(str(name), 1, self.device)
        with self.bound(choice):
            yield []

    def asked(
        self,
        inputs: Mapping[str, Any],
        prompt_mask: Tensor | None,
        labels: Tensor | None,
        segment_ids: Tensor | None,
        trunk: TrunkBatch | None,
    ) -> AbstractContextManager[list[Routing]]:
        """The router's choice, of the trunk's states where they are known and on the way else.

        Raises:
            RoutingError: the inputs do not say what to route by.
            BaseModelError: the trunk's states are not those that routing by token reads.
        """
        if trunk is not None:
            return self.routed(trunk, {**inputs, "segment_ids": segment_ids})
        if self.per_token:
            return self.listening_by_token(inputs, segment_ids)
        return self.listening(prompt_mask_of(inputs, prompt_mask, labels), segment_ids)

    @property
    def per_token(self) -> bool:
        """Whether the router decides for each token, not once a row."""
        return self.router.granularity == "token"

    def features(
        self, trunk: TrunkBatch, inputs: Mapping[str, Any]
    ) -> Float[Tensor, "*decisions d_features"]:
        """What the router decides by in a batch whose trunk states are known: a vector a row (or
        segment), or one a token.

        Args:
            trunk: of the batch.
            inputs: its `attention_mask` or `segment_ids`, where it has them.

        Raises:
            BaseModelError: it decides for each token, and only the tap's states were kept.
        """
        if not self.per_token:
            return trunk.features
        mask = token_mask_of(inputs.get("attention_mask"), trunk.hidden)
        return running_features(trunk.hiddens(), mask, inputs.get("segment_ids")).features

    def decided(self, trunk: TrunkBatch, inputs: Mapping[str, Any]) -> Routing:
        """What the router says of a batch before its pass; as `features`."""
        found = self.features(trunk, inputs)
        if not self.per_token:
            routing: Routing = self.router(found)
            return routing
        return self._by_token(found, token_mask_of(inputs.get("attention_mask"), trunk.hidden))

    def _by_token(
        self, features: Float[Tensor, "batch seq d_features"], mask: Bool[Tensor, "batch seq"]
    ) -> Routing:
        routing: Routing = self.router(features, mask)
        return routing.masked(mask)

    @contextmanager
    def routed(self, trunk: TrunkBatch, inputs: Mapping[str, Any]) -> Iterator[list[Routing]]:
        """Routing by states that are known before the pass; arguments as of `features`."""
        routing = self.decided(trunk, inputs)
        with self.bound(gates_of(routing, inputs.get("segment_ids"))):
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

    @contextmanager
    def listening_by_token(
        self, inputs: Mapping[str, Any], segment_ids: Tensor | None
    ) -> Iterator[list[Routing]]:
        """Routing of every token on the way; a cache in the inputs carries what it goes by."""
        routings: list[Routing] = []
        cache = cache_of(inputs)

        def at_the_tap(hiddens: Hiddens) -> None:
            mask = token_mask_of(inputs.get("attention_mask"), hiddens[0])
            routings.append(self.token_routing(hiddens, mask, cache, segment_ids))
            self.give(gates_of(routings[0]))

        with self.bound(None), self.tap.listening(at_the_tap):
            yield routings

    def token_routing(
        self,
        hiddens: Hiddens,
        mask: Bool[Tensor, "batch seq"],
        cache: PrefixCache | None,
        segment_ids: Tensor | None = None,
    ) -> Routing:
        """What the router says of each token that has come to the tap.

        Args:
            hiddens: what the tap's reader heard.
            mask: False on padding, which gets no expert.
            cache: carries the tokens before these; None where the rows begin here.
            segment_ids: of a packed batch.
        """
        if cache is not None:
            return self._by_token(cache.advance(hiddens, mask), mask)
        return self._by_token(running_features(hiddens, mask, segment_ids).features, mask)
