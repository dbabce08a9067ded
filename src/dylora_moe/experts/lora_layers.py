"""One adapter's place in one of PEFT's LoRA layers: filled, read and cleared without PEFT's tuner.

Knows what PEFT's `LoraLayer.update_layer` leaves behind for a plain LoRA (a test holds it against
that); knows nothing of files or budgets. PEFT's own way costs a hundred times as much: it draws
matrices that are thrown away, and goes through every adapter of the layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils.other import get_pattern_key
from torch import Tensor, nn


def fill(
    layer: LoraLayer,
    name: str,
    config: LoraConfig,
    path: str,
    matrices: tuple[Tensor, Tensor],
    dropout: nn.Module,
) -> None:
    """Puts an adapter into the layer, frozen, in place of the one of that name.

    Args:
        layer: at `path`.
        name: of the adapter.
        config: of the adapter; the rank is that of the matrices.
        path: of the layer in the model.
        matrices: `A` `[rank, in]` and `B` `[out, rank]`, whose memory becomes the parameters'.
        dropout: from `dropout_of`; the adapter's layers may share it.
    """
    down, up = matrices
    rank, patterns = down.shape[0], config.alpha_pattern
    alpha = config.lora_alpha
    if patterns:
        alpha = patterns.get(get_pattern_key(patterns.keys(), path), alpha)
    layer.r[name] = rank
    layer.lora_alpha[name] = alpha
    layer.scaling[name] = alpha / (math.sqrt(rank) if config.use_rslora else rank)
    layer.use_rslora[name] = config.use_rslora
    layer.use_dora[name] = False
    layer.lora_bias[name] = False
    layer.lora_dropout[name] = dropout
    layer.lora_A[name] = _linear(down)
    layer.lora_B[name] = _linear(up)


def dropout_of(config: LoraConfig) -> nn.Module:
    """What an adapter does to its input while it trains."""
    return nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()


def be_evaluated(layer: LoraLayer, name: str) -> None:
    """Puts an adapter's modules in eval mode: new ones are in training mode, whatever the model's.

    So nobody has to walk through all that are there when a mode is switched.
    """
    for module in (layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]):
        # Not by `eval()`: an expert has hundreds of modules, and this runs whenever one comes.
        vars(module)["training"] = False


def clear(layer: LoraLayer, name: str) -> None:
    """Takes an adapter out of the layer."""
    # Emptied first: PEFT would warn that it activates some other adapter instead.
    layer._active_adapter = []
    layer.delete_adapter(name)


def activate(layers: Iterable[LoraLayer], names: Sequence[str]) -> None:
    """Sets what PEFT calls active; gradients stay, which PEFT's `set_adapter` would switch in
    every adapter of the layer."""
    for layer in layers:
        layer._active_adapter = list(names)


def pair(layer: LoraLayer, name: str) -> tuple[Tensor, Tensor]:
    """`A` and `B` of an adapter, without gradients."""
    return layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()


def write(layer: LoraLayer, name: str, down: Tensor, up: Tensor) -> None:
    """Writes `A` `[rank, in]` and `B` `[out, rank]` into the parameters that are there."""
    with torch.no_grad():
        layer.lora_A[name].weight.copy_(down)
        layer.lora_B[name].weight.copy_(up)


def _linear(weight: Tensor) -> nn.Linear:
    # nn.Linear would draw numbers that nobody uses, three times as long as the rest takes.
    linear: nn.Linear = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(linear)
    linear.out_features, linear.in_features = weight.shape
    # `.data`: the views of one flat tensor would share a counter of versions, and a write to one
    # would look like a write to all.
    linear.weight = nn.Parameter(weight.data, requires_grad=False)
    linear.register_parameter("bias", None)
    return linear
