"""The plain truth that benchmarks compare with: a stock base with deltas added to its weights.

Knows LoRA's formula; uses none of our layers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import workload
from torch import Tensor
from torch.nn import functional

from dylora_moe.foundation.base import Base

# PEFT's names of a module's matrices in an adapter file.
_DOWN, _UP = "base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"

States = Mapping[str, Mapping[str, Tensor]]
"""By expert: its matrices under their names in an adapter file."""


class Merged:
    """A stock base that takes any weighted sum of experts into its own matrices.

    Args:
        base: without adapters, `workload.load_stock`'s, so that nothing of ours is in it.
        states: of the experts, all of rank and alpha as the workload makes them.
    """

    def __init__(self, base: Base, states: States) -> None:
        self._base = base
        self._states = states

    def logits(self, ids: Tensor, weights: Mapping[str, float]) -> Tensor:
        """Logits `[rows, seq, vocabulary]` of rows that all have these weights of experts."""
        scaling = workload.ALPHA / workload.RANK
        originals = []
        with torch.no_grad():
            for path, layer in self._base.model.named_modules():
                delta: Tensor | float = 0.0
                for name, share in weights.items():
                    state = self._states[name]
                    down, up = state.get(_DOWN.format(path)), state.get(_UP.format(path))
                    if down is not None and up is not None and share:
                        delta = delta + share * scaling * (up @ down)
                if isinstance(delta, Tensor):
                    weight = layer.weight
                    assert isinstance(weight, Tensor)
                    originals.append((weight, weight.clone()))
                    weight += delta.to(weight.device)
            found: Tensor = self._base.model(input_ids=ids, use_cache=False).logits
            for weight, original in originals:
                weight.copy_(original)
        return found

    def loss(self, ids: Tensor, weights: Tensor) -> Tensor:
        """The mean loss of every next token of rows of one length, each with its own weights.

        Args:
            ids: `[rows, seq]`.
            weights: of the experts in the order of the states, `[rows, experts]`.
        """
        found = []
        for row, shares in zip(ids, weights.tolist(), strict=True):
            logits = self.logits(row[None], dict(zip(self._states, shares, strict=True)))[0]
            found.append(functional.cross_entropy(logits[:-1].float(), row[1:]))
        return torch.stack(found).mean()

    def answers(self, prompts: Tensor, forced: Tensor, weights: Tensor) -> Tensor:
        """Logits before each forced token, row by row, as `decoding.record` gives them.

        Args:
            prompts: `[rows, seq]`.
            forced: `[rows, n]`.
            weights: of the experts in the order of the states, `[rows, experts]`.
        """
        found = []
        for row, text in enumerate(torch.cat([prompts, forced], dim=1)):
            shares = dict(zip(self._states, weights[row].tolist(), strict=True))
            logits = self.logits(text[None], shares)[:, prompts.shape[1] - 1 : -1]
            found.append(logits)
        return torch.cat(found)
