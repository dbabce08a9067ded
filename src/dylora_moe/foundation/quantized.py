"""Keeps the linear layers of a base's blocks in 8 or 4 bits; head, embedding and norms stay.

Knows which form suits which device and puts layers in the places of others; how each form
multiplies is the layers' own. Blocks below the tap are quantised like those above: the trunk is a
fixed function of the input still, of the base as it was quantised.

    int8   one scale per output, the weights alone; torch's own kernels on a CPU; every device
    int4   groups of 64 with scale and zero, likewise
    nf4    QLoRA's NormalFloat with quantised scales, by bitsandbytes; its kernels are CUDA's
"""

from __future__ import annotations

import hashlib
from typing import Literal, cast, get_args

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dylora_moe.errors import BaseModelError, ConfigError
from dylora_moe.foundation.anatomy import LINEAR_CLASSES, Anatomy, blocks
from dylora_moe.foundation.bitsandbytes_linear import nf4_linear
from dylora_moe.foundation.integer_linear import Int4Linear, Int8Linear

Quantization = Literal["int8", "int4", "nf4"]


def choose_quantization(asked: str | None, device: torch.device) -> Quantization | None:
    """The form a new pool's base is kept in: what was asked for, but `nf4` for `int4` on CUDA.

    LLM.int8() of bitsandbytes is no choice: which inputs it takes for outliers depends on the
    other rows of the batch, and a row's routing must not.

    Raises:
        ConfigError: no such form.
    """
    if asked is None:
        return None
    chosen = check_quantization(asked)
    return "nf4" if chosen == "int4" and device.type == "cuda" else chosen


def check_quantization(name: str) -> Quantization:
    """The name itself.

    Raises:
        ConfigError: no such form.
    """
    if name not in get_args(Quantization):
        raise ConfigError(
            f"no quantization {name!r}; use {', '.join(get_args(Quantization))}, or leave it out"
        )
    return cast(Quantization, name)


def quantize_blocks(
    model: PreTrainedModel, anatomy: Anatomy, quantize: Quantization, device: torch.device
) -> None:
    """Replaces the linear layers inside the blocks, one by one on `device`; the rest stays put.

    The scales get the model's dtype, which it goes on to compute in. Layers of a class of their
    own that only derives from nn.Linear stay as they are.

    Raises:
        BaseModelError: a weight that is no floating point number (a quantised checkpoint), or no
            plain linear layer at all.
        MissingExtraError: `nf4`, and bitsandbytes is not installed.
    """
    dtype = model.dtype
    replaced = 0
    for block in blocks(model, anatomy):
        for path, module in tuple(block.named_modules()):
            if type(module) not in LINEAR_CLASSES:
                continue
            parent, _, leaf = path.rpartition(".")
            setattr(block.get_submodule(parent), leaf, _quantized(module, quantize, device, dtype))
            replaced += 1
    if not replaced:
        raise BaseModelError(
            f"no plain linear layer in the blocks {anatomy.blocks_path} of "
            f"{type(model).__name__}, so there is nothing to quantise; leave quantize out"
        )


def quantized_fingerprint(stock: str, quantize: str | None) -> str:
    """The fingerprint of a base in that form: of the stock weights' and of the form's name.

    Not of the integers, since those of one checkpoint differ a little by the dtype it was read in.
    """
    if quantize is None:
        return stock
    return hashlib.sha256(f"{stock} {quantize}".encode()).hexdigest()


def _quantized(
    module: nn.Module, quantize: Quantization, device: torch.device, dtype: torch.dtype
) -> nn.Linear:
    assert isinstance(module, LINEAR_CLASSES)
    weight = module.weight
    if not weight.is_floating_point():
        raise BaseModelError(
            "the base's checkpoint is quantised already; leave quantize out, or give the "
            "checkpoint it was made from"
        )
    # Conv1D keeps [in, out].
    weight = (weight.T if isinstance(module, Conv1D) else weight).detach().to(device).contiguous()
    bias = None if module.bias is None else module.bias.detach().to(device)
    if quantize == "nf4":
        return nf4_linear(weight, bias, dtype)
    layer = Int8Linear if quantize == "int8" else Int4Linear
    return layer(weight, bias, dtype)
