"""A KV cache that also carries what routing token by token goes on from.

Knows transformers' cache and the sum of a row's hidden states; knows nothing of the router.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig

from dylora_moe.errors import RoutingError
from dylora_moe.foundation.cache_name import cache_of, with_cache
from dylora_moe.foundation.tap import Hiddens, Prefix, running_features


class PrefixCache(DynamicCache):
    """A `DynamicCache` with each row's running sum beside its keys and values.

    Whatever moves the rows of the cache (beam search reorders them at every step) moves the sums
    with them. Tokens cannot be taken back out of a sum, so it cannot be cropped: assisted decoding
    has to do without.

    Args:
        config: of the base.

    Attributes:
        prefix: of the rows that the cache holds; None while it is empty.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        self.prefix: Prefix | None = None
        self._positions = 0

    def advance(
        self, hiddens: Hiddens, mask: Bool[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch seq d_features"]:
        """Features of new tokens, which then belong to the prefix.

        Called at the tap, where the blocks below have put the tokens' keys into the cache already.

        Raises:
            RoutingError: the cache holds tokens that no routed pass has read.
        """
        self._positions += mask.shape[1]
        if self.get_seq_length() != self._positions:
            raise RoutingError(
                f"the cache holds {self.get_seq_length()} positions and the running mean "
                f"{self._positions}; go on with the experts that the cache was filled with, or "
                "read the row anew"
            )
        running = running_features(hiddens, mask, prefix=self.prefix)
        self.prefix = running.prefix
        return running.features

    @property
    def is_croppable(self) -> bool:
        """No: what asks first then leaves it alone."""
        return False

    def crop(self, tokens_to_remove: int) -> None:
        """Refused, but for 0 tokens.

        Raises:
            RoutingError: tokens would have to be taken back.
        """
        if tokens_to_remove != 0:
            raise RoutingError(
                "routing token by token cannot take tokens back out of its running mean; generate "
                "without an assistant and without prompt lookup"
            )
        super().crop(0)

    def reset(self) -> None:
        """Empties it."""
        super().reset()
        self.prefix, self._positions = None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Puts row `beam_idx[i]` in place `i`."""
        super().reorder_cache(beam_idx)
        self._take(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows, in this order."""
        super().batch_select_indices(indices)
        self._take(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times behind itself."""
        super().batch_repeat_interleave(repeats)
        if self.prefix is not None:
            self._take(torch.arange(len(self.prefix.count)).repeat_interleave(repeats))

    def _take(self, indices: Tensor) -> None:
        if self.prefix is not None:
            self.prefix = self.prefix.rows(indices)


def with_prefix_cache(inputs: Mapping[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """The inputs of a pass, with a cache that carries the prefix where the pass fills one.

    Raises:
        RoutingError: they bring a cache of another kind.
    """
    cache, use = cache_of(inputs), inputs.get("use_cache")
    if cache is not None and not isinstance(cache, PrefixCache):
        raise RoutingError(
            f"a {type(cache).__name__} holds no running mean, which routing token by token goes on "
            "from; pass the cache of a pass that routed, or a PrefixCache"
        )
    if use is None:
        use = getattr(config.get_text_config(decoder=True), "use_cache", False)
    if cache is None and use:
        cache = PrefixCache(config)
    return with_cache(inputs, cache)
