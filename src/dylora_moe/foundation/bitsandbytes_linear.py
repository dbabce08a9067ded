"""Frozen linear layers of bitsandbytes: the one file that imports it.

Knows its 4-bit layer and the trap in it; knows nothing of models.
"""

from __future__ import annotations

import logging

import torch
from jaxtyping import Float
from torch import nn

from dylora_moe.errors import MissingExtraError


def nf4_linear(
    weight: Float[torch.Tensor, "d_out d_in"],
    bias: Float[torch.Tensor, " d_out"] | None,
    dtype: torch.dtype,
) -> nn.Linear:
    """A `Linear4bit` in NormalFloat4 with quantised scales (Dettmers et al. 2023, QLoRA).

    Args:
        weight: in floating point, on the device it is to stay on.
        bias: likewise.
        dtype: the compute dtype.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    # It says at its first import on a CPU that it would like one more package.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise MissingExtraError(
            "4-bit weights in nf4 (what int4 is on CUDA) need bitsandbytes; "
            f"pip install 'dylora-moe[quantize]' ({error})"
        ) from error
    d_out, d_in = weight.shape
    layer = Linear4bit(d_in, d_out, bias=False, compute_dtype=dtype, device="meta")
    # bitsandbytes quantises when a tensor moves; on a CPU, where it may not have to, it is told.
    packed = Params4bit(
        weight.detach().to(dtype), requires_grad=False, quant_type="nf4", module=layer
    )
    layer.weight = packed.to(weight.device)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
    # Else a CPU with AVX512-BF16 packs the weight anew at the first pass without a graph: in
    # place, with other scales, and for an operator that has no gradient (`None` for the input).
    layer.support_avx512bf16_for_cpu = False
    result: nn.Linear = layer
    return result
