"""Listens to the hidden states at and below the tap, and pools them into features: one vector for
a whole prompt, or one for every token from what stands before it.

Knows blocks and masks; knows nothing of what is decided from the features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dylora_moe.errors import DataError
from dylora_moe.foundation.anatomy import Anatomy, blocks

Hiddens = tuple[Tensor, ...]
"""One hidden state `[batch, seq, d_model]` per feature block, in their order; the tap last."""


def hidden_of(output: Tensor | tuple[Any, ...]) -> Tensor:
    """The hidden state in a block's output: the output itself, or the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


class TapReader:
    """Hands over the hidden states of a model's feature blocks while it runs.

    Args:
        model: the base model, or one whose blocks above the tap were adapted.
        anatomy: says which blocks; the hidden state entering block `f` is what block `f - 1`
            returns.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        self._sources = [blocks(model, anatomy)[f - 1] for f in anatomy.feature_blocks]

    @contextmanager
    def listening(self, callback: Callable[[Hiddens], None]) -> Iterator[None]:
        """Calls back in every forward pass once the tap is known, before the blocks above run.

        `callback` gets one `[batch, seq, d_model]` per feature block, in the base's dtype: the
        whole input at the prompt, one position per step of a cached generation. A pass under
        `trunk.replay` does not run the blocks below the tap and so is not heard: its features
        are those of the TrunkBatch. Survives `torch.compile(fullgraph=True)`.
        """
        heard: list[Tensor] = []
        last = len(self._sources) - 1

        def hear(index: int, output: Tensor | tuple[Any, ...]) -> None:
            if index == 0:
                heard.clear()
            heard.append(hidden_of(output))
            if index == last:
                callback(tuple(heard))
                heard.clear()

        def hook(index: int) -> Callable[..., None]:
            def forward_hook(module: nn.Module, args: Any, output: Any) -> None:
                if not is_skipped(module):
                    hear(index, output)

            return forward_hook

        handles = [
            source.register_forward_hook(hook(index)) for index, source in enumerate(self._sources)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def pool_features(
    hiddens: Sequence[Float[Tensor, "batch seq d_model"]],
    prompt_mask: Bool[Tensor, "batch seq"],
    segment_ids: Int[Tensor, "1 seq"] | None = None,
) -> Float[Tensor, "n d_features"]:
    """The mean over each row's prompt tokens, in fp32, of every feature block, side by side.

    Args:
        hiddens: one hidden state per feature block.
        prompt_mask: the tokens to pool over; padding, answers and what was generated are not.
        segment_ids: for packed rows, the row (0..n-1) each position belongs to; then the batch
            is one sequence and `n` is the number of rows in it.

    Raises:
        DataError: a row without a prompt token.
    """
    mask = prompt_mask.to(hiddens[0].device)
    if segment_ids is None:
        member = mask[:, None, :]
    else:
        ids = segment_ids.to(mask.device)
        rows = torch.arange(int(ids.max()) + 1, device=mask.device)
        member = (ids[:, None, :] == rows[None, :, None]) & mask[:, None, :]
    weights = member.float()
    counts = weights.sum(-1, keepdim=True)
    if not torch.compiler.is_compiling() and bool((counts == 0).any()):
        empty = int((counts.flatten() == 0).nonzero()[0])
        raise DataError(
            f"row {empty} of the batch has no prompt token to pool features over; "
            "mark at least one in prompt_mask"
        )
    # Zeroed before the product: a fully masked position may hold NaN, and 0 * NaN is NaN.
    pooled = [
        weights @ hidden.float().masked_fill(~mask[..., None], 0.0) / counts for hidden in hiddens
    ]
    return torch.cat(pooled, dim=-1).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class Prefix:
    """What running features go on from: the tokens of each row so far.

    Attributes:
        total: sum of their hidden states in fp32, the feature blocks side by side.
        count: how many they are, padding not among them.
    """

    total: Float[Tensor, "rows d_features"]
    count: Float[Tensor, "rows 1"]

    def rows(self, indices: Int[Tensor, " n"]) -> Prefix:
        """Those of some rows, in that order."""
        chosen = indices.to(self.count.device)
        return Prefix(self.total.index_select(0, chosen), self.count.index_select(0, chosen))


@dataclass(frozen=True, eq=False)
class Running:
    """Features of every token, and what the next ones go on from.

    Attributes:
        features: of each token, over it and everything before it in its row.
        prefix: the rows after their last token; meaningless for packed ones.
    """

    features: Float[Tensor, "batch seq d_features"]
    prefix: Prefix


def running_features(
    hiddens: Sequence[Float[Tensor, "batch seq d_model"]],
    mask: Bool[Tensor, "batch seq"],
    segment_ids: Int[Tensor, "1 seq"] | None = None,
    prefix: Prefix | None = None,
) -> Running:
    """The mean over each token's prefix, itself included: `pool_features` of every prefix.

    Causal, so a token's features are the same in training, where the rest of its row stands
    behind it, and in generation, where it is not written yet.

    Args:
        hiddens: one hidden state per feature block.
        mask: False on padding, which counts for no mean; its own features mean nothing.
        segment_ids: for packed rows, the row (0..n-1) each position belongs to, ascending.
        prefix: what a KV cache holds of each row; None where the rows begin here.
    """
    mask = mask.to(hiddens[0].device)
    # Zeroed, not multiplied: a fully masked position may hold NaN, and 0 * NaN is NaN.
    values = torch.cat([h.float().masked_fill(~mask[..., None], 0.0) for h in hiddens], dim=-1)
    counts = mask[..., None].float()
    if segment_ids is None:
        totals, counts = values.cumsum(1), counts.cumsum(1)
    else:
        # Row by row, not one sum less what stood before: that would round by the neighbours' size.
        lengths = torch.unique_consecutive(segment_ids[0], return_counts=True)[1].tolist()
        totals = torch.cat([part.cumsum(1) for part in values.split(lengths, 1)], 1)
        counts = torch.cat([part.cumsum(1) for part in counts.split(lengths, 1)], 1)
    if prefix is not None:
        totals, counts = totals + prefix.total[:, None], counts + prefix.count[:, None]
    return Running(totals / counts.clamp(min=1.0), Prefix(totals[:, -1], counts[:, -1]))


class Skip:
    """Stands in for a block's `forward`; `is_skipped` knows it by its class."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


def is_skipped(block: nn.Module) -> bool:
    """Whether the block passes on or replays what it is given instead of computing."""
    return isinstance(vars(block).get("forward"), Skip)
