"""The LoRA layer of the mixture: every expert of a batch in one of three forms of products.

Knows PEFT's layer and reads its model's gate slot; knows nothing of routing or of where adapters
come from. The form (`products`) is chosen by what it costs: the experts stacked along the rank,
each row's own gathered, or tokens grouped by expert.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from dylora_moe.experts.gates import Gates, GateSlot
from dylora_moe.experts.products import (
    ALIGNED_BYTES,
    Form,
    StackedLinear,
    add_by_row,
    add_by_token,
    cheapest,
    gathered,
    pile,
    stack,
)
from dylora_moe.experts.ready import Ready, Stacks, is_few, turned, version


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
        self._stacks = Stacks()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Base output plus the gated experts' deltas.

        Args:
            x: `[batch, seq, in]` or `[batch * seq, in]`.
            args: handed to the base layer, as are `kwargs`.

        Returns:
            The same leading shape with `out` features, in the base layer's dtype.
        """
        # Not by PEFT's properties: this runs for every layer of every step.
        if self._disable_adapters or self.merged_adapters:
            if self._disable_adapters and self.merged_adapters:
                self.unmerge()
            return self._base(x, *args, **kwargs)
        gates = self._slot.current
        if gates is None:
            return self._base(x, *args, **kwargs)
        if not (args or kwargs or torch.is_grad_enabled() or _is_watched(x)):
            ready: Ready | None = gates.kept.get(self)
            if ready is not None and ready.fits(x, self._slot.revision):
                return ready.output(x, self._base)
        names = tuple(name for name in gates.experts if name in self.lora_A)
        if not names:
            return self._base(x, *args, **kwargs)
        if args or kwargs or self._needs_operations(x, names):
            return self._base(x, *args, **kwargs) + self._delta(x, gates, names)
        form = self._form(x, gates, names)
        if form == "stacked":
            if torch.is_grad_enabled():
                return self._with_graph(x, gates, names)
            return self._stacked(x, gates, names)
        return self._sparse(x, gates, names, form)

    def forget(self) -> None:
        """Lets go of the stacks that were kept, whose experts leave."""
        self._stacks.forget()

    def _base(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = self.base_layer(x, *args, **kwargs)
        assert isinstance(result, Tensor)
        return result

    def _needs_operations(self, x: Tensor, names: tuple[str, ...]) -> bool:
        """Whether the layer has to be written as separate operations, for others to look into."""
        if _is_watched(x):
            return True
        if not torch.is_grad_enabled():
            return False
        frozen = _frozen(self.base_layer)
        # The one node of the graph has no gradients for the base.
        if frozen is None or any(one is not None and one.requires_grad for one in frozen):
            return True
        drops = (self.lora_dropout[name] for name in names)
        return any(isinstance(drop, nn.Dropout) and drop.training for drop in drops)

    def _form(self, x: Tensor, gates: Gates, names: tuple[str, ...]) -> Form:
        if len(names) == 1 or x.dim() != 3:
            return "stacked"
        return cheapest(
            rows=x.shape[0],
            length=x.shape[1],
            experts=len(names),
            chosen=min(gates.most or len(names), len(names)),
            per_token=gates.weights.dim() == 3,
            grouped=self._has_grouped(x),
        )

    def _has_grouped(self, x: Tensor) -> bool:
        """Whether there is a kernel; other types and sizes go through a loop that waits."""
        aligned = ALIGNED_BYTES // x.dtype.itemsize
        fits = self.in_features % aligned == 0 and self.out_features % aligned == 0
        return x.device.type == "cuda" and x.dtype == torch.bfloat16 and fits

    def _delta(self, x: Tensor, gates: Gates, names: tuple[str, ...]) -> Tensor:
        """What the experts add, in plain operations: with dropout, and where it is compiled."""
        downs, ups = stack(self._matrices(names), x.dtype)
        drops = [self.lora_dropout[name] for name in names]
        if any(isinstance(drop, nn.Dropout) and drop.training for drop in drops):
            # Each expert drops on its own: a frozen neighbour must not get the young one's noise.
            rows = downs.split([self.r[name] for name in names])
            parts = [functional.linear(drop(x), a) for drop, a in zip(drops, rows, strict=True)]
            down = torch.cat(parts, dim=-1)
        else:
            down = functional.linear(x, downs)
        return functional.linear(down * self._along_rank(x, gates, names), ups)

    def _with_graph(self, x: Tensor, gates: Gates, names: tuple[str, ...]) -> Tensor:
        """One node of the graph; the experts' part is added within the product."""
        gate, scale = None, self.scaling[names[0]]
        if not (gates.uniform and len(names) == 1):
            gate, scale = self._along_rank(x, gates, names), 1.0
        matrices = self._matrices(names)
        weight, bias = _frozen(self.base_layer) or (None, None)
        assert weight is not None
        result = StackedLinear.apply(x, weight, bias, gate, scale, *matrices)
        assert isinstance(result, Tensor)
        return result

    def _stacked(self, x: Tensor, gates: Gates, names: tuple[str, ...]) -> Tensor:
        """Without a graph: stacks are kept, and weights that one token's rows share are in them."""
        matrices = self._matrices(names)
        few, learns = is_few(x, sum(self.r[name] for name in names)), self._learns(names)
        dtype, revision = torch.float32 if few else x.dtype, self._slot.revision
        scalings = tuple(self.scaling[name] for name in names)
        if learns:
            downs, ups = turned(matrices, scalings, dtype)
        else:
            downs, ups = self._stacks.of(names, matrices, scalings, dtype, revision)
        gate = None
        if not (gates.uniform and len(names) == 1):
            # The scaling is in the stacks.
            ranks = tuple(self.r[name] for name in names)
            gate = gates.along_rank(names, ranks, (1.0,) * len(names), x).to(dtype)
            if gates.weights.dim() == 2 and gates.weights.shape[0] == 1 and x.shape[-2] == 1:
                ups, gate = ups * gate.view(-1, 1), None
        ready = Ready(x, revision, matrices, downs, ups, gate, _frozen(self.base_layer))
        if not learns:
            gates.kept[self] = ready
        return ready.output(x, self._base)

    def _sparse(self, x: Tensor, gates: Gates, names: tuple[str, ...], form: Form) -> Tensor:
        """Only the experts that each row, or each token, was given."""
        frozen = _frozen(self.base_layer)
        # What the module gave may be held by a hook; what was made here is nobody else's.
        result = self._base(x) if frozen is None else functional.linear(x, *frozen)
        parts = self._sparse_parts(x, gates, names, form)
        if form == "by row":
            in_place = frozen is not None and not torch.is_grad_enabled()
            return add_by_row(result, x, *parts, in_place=in_place)
        flat = result.reshape(-1, result.shape[-1])
        return add_by_token(flat, x.reshape(-1, x.shape[-1]), *parts).view_as(result)

    def _sparse_parts(
        self, x: Tensor, gates: Gates, names: tuple[str, ...], form: Form
    ) -> tuple[Tensor, ...]:
        """What `add_by_row` or `add_by_token` takes; kept for the next step of a generation."""
        matrices = self._matrices(names)
        keep = not (torch.is_grad_enabled() or self._learns(names))
        key = (self._slot.revision, version(matrices), x.dtype, x.device) if keep else None
        kept: tuple[Any, tuple[Tensor, ...]] | None = gates.kept.get((self, form))
        if keep and kept is not None and kept[0] == key:
            return kept[1]
        downs, ups = pile(matrices, x.dtype)
        chosen, gate = gates.picked(names, tuple(self.scaling[name] for name in names))
        gate, k = gate.to(x.dtype), chosen.shape[-1]
        parts: tuple[Tensor, ...] = downs, ups, chosen.reshape(-1, k), gate.reshape(-1, k)
        if form == "by row":
            parts = gathered(downs, ups, chosen, gate)
        if keep:
            gates.kept[self, form] = key, parts
        return parts

    def _along_rank(self, x: Tensor, gates: Gates, names: tuple[str, ...]) -> Tensor:
        ranks = tuple(self.r[name] for name in names)
        return gates.along_rank(names, ranks, tuple(self.scaling[name] for name in names), x)

    def _matrices(self, names: tuple[str, ...]) -> tuple[Tensor, ...]:
        return (
            *(self.lora_A[name].weight for name in names),
            *(self.lora_B[name].weight for name in names),
        )

    def _learns(self, names: tuple[str, ...]) -> bool:
        # A fused optimizer changes parameters without counting it in `_version`, so nothing is
        # kept of an expert that learns; freezing it counts as a revision.
        return any(self.lora_B[name].weight.requires_grad for name in names)


def _is_watched(x: Tensor) -> bool:
    """Whether a compiler or autocast has to see each operation."""
    return torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type)


def _frozen(layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight `[out, in]` and bias of a layer that is a plain product; None for any other, and
    where a hook waits for the module to be called."""
    is_hooked = layer._forward_hooks or layer._forward_pre_hooks
    if is_hooked or type(layer) not in (nn.Linear, Conv1D):
        return None
    if type(layer.weight.data) is not Tensor:
        return None
    if isinstance(layer, nn.Linear):
        return layer.weight, layer.bias
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    return weight.t(), bias
