"""The LoRA layer of the mixture: every expert of a batch in two matrix products.

Knows PEFT's layer and reads its model's gate slot; knows nothing of routing or of where adapters
come from. The experts are stacked along the rank,
`y = W x + ((x A^T) * gates) B^T`, with `A` `[sum of ranks, in]`, `B` `[out, sum of ranks]`.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from dylora_moe.experts.gates import GateSlot


class MixtureLinear(Linear):
    """PEFT's LoRA layer over `nn.Linear` or GPT-2's `Conv1D`, weighted by the slot's gates.

    Without gates, or with gates of none of its experts, it is its base layer, bit for bit. PEFT's
    notion of active adapters counts only for merging. Adapters stay fp32 and compute in the
    input's dtype.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        *,
        config: LoraConfig,
        slot: GateSlot,
        **kwargs: Any,
    ) -> None:
        transposed = isinstance(base_layer, Conv1D)
        super().__init__(
            base_layer,
            adapter_name,
            config=config,
            is_target_conv_1d_layer=transposed,
            **kwargs,
        )
        self.fan_in_fan_out = transposed
        self._slot = slot
        self._stack_key: Any = None
        self._stack: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Base output plus the gated experts' deltas.

        Args:
            x: `[batch, seq, in]` or `[batch * seq, in]`.
            args: handed to the base layer, as are `kwargs`.

        Returns:
            The same leading shape with `out` features, in the base layer's dtype.
        """
        if self.disable_adapters or self.merged:
            if self.disable_adapters and self.merged:
                self.unmerge()
            return self._base(x, *args, **kwargs)
        result = self._base(x, *args, **kwargs)
        gates = self._slot.current
        if gates is None:
            return result
        names = tuple(name for name in gates.experts if name in self.lora_A)
        if not names:
            return result
        ranks = tuple(self.r[name] for name in names)
        scalings = tuple(self.scaling[name] for name in names)
        stack_a, stack_b = self._stacks(names, x.dtype)
        hidden = self._down(x, names, stack_a) * gates.along_rank(names, ranks, scalings, x)
        return result + functional.linear(hidden, stack_b).to(result.dtype)

    def _base(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = self.base_layer(x, *args, **kwargs)
        assert isinstance(result, Tensor)
        return result

    def _down(self, x: Tensor, names: tuple[str, ...], stack_a: Tensor) -> Tensor:
        drops = [self.lora_dropout[name] for name in names]
        if not any(isinstance(drop, nn.Dropout) and drop.training for drop in drops):
            return functional.linear(x, stack_a)
        # Each expert drops on its own: a frozen neighbour must not get the young one's noise.
        rows = stack_a.split([self.r[name] for name in names])
        parts = [functional.linear(drop(x), a) for drop, a in zip(drops, rows, strict=True)]
        return torch.cat(parts, dim=-1)

    def _stacks(self, names: tuple[str, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        # A fused optimizer changes parameters without counting it in `_version`, so the stack of
        # an expert that learns is never kept; freezing it counts as a revision.
        learning = any(self.lora_B[name].weight.requires_grad for name in names)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or learning:
            return self._stacked(names, dtype)
        # `_version` counts in-place changes by hand, `revision` the manager's.
        version = sum(
            self.lora_A[name].weight._version + self.lora_B[name].weight._version for name in names
        )
        key = (names, dtype, self._slot.revision, version)
        if self._stack is None or self._stack_key != key:
            self._stack = self._stacked(names, dtype)
            self._stack_key = key
        return self._stack

    def _stacked(self, names: tuple[str, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        downs = [self.lora_A[name].weight for name in names]
        ups = [self.lora_B[name].weight for name in names]
        if len(names) == 1:
            return downs[0].to(dtype), ups[0].to(dtype)
        return torch.cat(downs).to(dtype), torch.cat(ups, dim=1).to(dtype)
