"""Rows as training and measuring see them: their tokens, and their trunk states, computed once.

Knows encoded rows and the cache; knows nothing of experts, gates or losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.errors import DataError
from dylora_moe.foundation.trunk import TrunkBatch
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.text.batching import Batch, collate, collate_packed
from dylora_moe.text.template import Encoded


@dataclass(frozen=True, eq=False)
class Rows:
    """Encoded rows with the trunk states of the same rows, in the same order.

    Raises:
        DataError: the cache holds other rows.
    """

    encoded: tuple[Encoded, ...]
    trunk: TrunkCache

    def __post_init__(self) -> None:
        if self.lengths != self.trunk.lengths:
            raise DataError(
                f"{len(self.encoded)} rows do not go with the trunk states of {len(self.trunk)}; "
                "compute the cache from the same rows"
            )

    def __len__(self) -> int:
        return len(self.encoded)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each row."""
        return tuple(len(row.input_ids) for row in self.encoded)

    @cached_property
    def targets(self) -> tuple[int, ...]:
        """Trained tokens of each row."""
        # The first token is predicted from nothing, so it never counts.
        return tuple(sum(row.trained[1:]) for row in self.encoded)

    @property
    def features(self) -> Float[Tensor, "n d_features"]:
        """The tap's pooled features of every row, fp32, on the CPU."""
        return self.trunk.features

    def batch(
        self,
        indices: Sequence[int],
        *,
        pad_id: int,
        device: torch.device,
        packed: bool = False,
    ) -> tuple[Batch, TrunkBatch]:
        """The tensors of some rows and their trunk states, on the device.

        Args:
            indices: rows, in the order of the batch.
            pad_id: what padded positions hold.
            device: where the model computes.
            packed: rows behind one another in one sequence instead of padded.
        """
        chosen = [self.encoded[index] for index in indices]
        batch = collate_packed(chosen) if packed else collate(chosen, pad_id)
        trunk = self.trunk.get(indices, packed=packed).to(device)
        return {key: value.to(device) for key, value in batch.items()}, trunk
