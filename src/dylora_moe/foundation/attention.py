"""Attention on a CPU for the lengths that are trained and prompted: plain matrix products.

torch's fused CPU kernel spends 8.7 ms forward and backward on eight rows of 72 tokens (9 heads of
64, bf16), these products 1.2 ms; it pays only where the scores no longer fit the caches. Registered
as an attention implementation of transformers. Knows queries, keys and masks; knows no model.
"""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "dylora_grouped"

MOST_SCORES = 1 << 22
"""Scores of a layer (rows x heads x queries x keys) up to which products pay; the backward pass
keeps them, 8 MiB a layer in bf16."""

_FEW_SCORES = 6000
"""Scores of a layer up to which one new token goes through torch's kernel, the heads of a group as
its queries: 25 us where the same kernel takes 116 with a head each (9 heads in 3 groups, 288 keys)
and products take 44; at eight rows 123, 802 and 74."""

_UNKNOWN = ("position_bias", "cache", "softcap")
"""What some layers hand in that these products would leave out."""


def use_grouped_attention(model: PreTrainedModel) -> bool:
    """Switches a model on a CPU from torch's fused attention to this one; whether it did.

    Models that are elsewhere, that run another attention, that cannot be switched or whose code
    asks for torch's attention by its name (some make their masks only then) stay as they are.
    """
    config = model.config.get_text_config()
    if model.device.type != "cpu" or config._attn_implementation != "sdpa":
        return False
    if not model._can_set_attn_implementation() or _asks_for_sdpa(model):
        return False
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, grouped_mask)
    model.set_attn_implementation(NAME)
    return True


def _asks_for_sdpa(model: PreTrainedModel) -> bool:
    """Whether a model's code tests its attention for the name `sdpa`; true where it is unreadable.

    Under a third name such a family takes another way, or leaves its sparse masks out, silently.
    """
    try:
        code = inspect.getsource(sys.modules[type(model).__module__])
    except (OSError, TypeError):
        return True
    return re.search(r'_attn_implementation\b[^\n]*["\']sdpa["\']', code) is not None


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Softmax attention in which the heads of a group share one product with its keys.

    Args:
        module: the attention layer.
        query: `[batch, heads, queries, d]`.
        key, value: `[batch, groups, keys, d]`; heads are a multiple of groups, and none is
            repeated for it.
        attention_mask: additive `[batch, 1, queries, keys]`; None: one new token sees every key. A
            boolean one goes to torch's own kernel.
        dropout: of the attention's weights; above 0 torch's own kernel runs.
        scaling: of the scores; `d ** -0.5` where None.
        kwargs: handed to torch's kernel where that runs: long rows, anything that these products
            do not know (`position_bias`, `cache`, `softcap`).

    Returns:
        The heads' outputs `[batch, queries, heads, d]`, and None for the weights.
    """
    rows, heads, queries, width = query.shape
    groups, keys = key.shape[1], key.shape[2]
    # One new token sees every key; more without a mask are causal, which only torch's kernel knows.
    known = queries == 1 if attention_mask is None else attention_mask.is_floating_point()
    known = known and all(kwargs.get(name) is None for name in _UNKNOWN)
    if not known or dropout > 0.0 or rows * heads * queries * keys > MOST_SCORES:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    share = heads // groups
    scale = width**-0.5 if scaling is None else scaling
    if queries == 1 and rows * heads * keys <= _FEW_SCORES:
        # A head of the group is a query of its keys: the kernel reads them once.
        mask = None if attention_mask is None else attention_mask.expand(-1, -1, share, -1)
        folded = query.reshape(rows, groups, share, width)
        output = functional.scaled_dot_product_attention(
            folded, key, value, attn_mask=mask, scale=scale
        )
        return output.reshape(rows, 1, heads, -1), None
    folded = (query * scale).reshape(rows, groups, share * queries, width)
    scores = torch.matmul(folded, key.transpose(2, 3)).view(rows, groups, share, queries, keys)
    if attention_mask is not None:
        scores = scores + attention_mask[:, :, None]
    weights = torch.softmax(scores, -1)
    output = torch.matmul(weights.view(rows, groups, share * queries, keys), value)
    return output.view(rows, heads, queries, -1).transpose(1, 2).contiguous(), None


def grouped_mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    dtype: torch.dtype = torch.float32,
    allow_is_causal_skip: bool = True,
    config: PreTrainedConfig | None = None,
    **rest: Any,
) -> Tensor | None:
    """The mask as numbers to add to the scores, made once for all layers.

    None where torch's kernel runs and needs none: one new token that sees every key, or causal rows
    with more scores than the products take.

    Args:
        batch_size, q_length, kv_length: rows, queries and keys.
        dtype: of the scores.
        allow_is_causal_skip: whether the model takes None for a causal mask.
        config: the model's, for its number of heads; without one only one new token has no mask.
        rest: handed to transformers' own mask.
    """
    heads = 0 if config is None else getattr(config.get_text_config(), "num_attention_heads", 0)
    torchs = q_length == 1 or batch_size * heads * q_length * kv_length > MOST_SCORES
    seen: Tensor | None = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        allow_is_causal_skip=allow_is_causal_skip and torchs,
        **rest,
    )
    if seen is None:
        return None
    # Half the lowest number, since fp16's lowest and a negative score make -inf, and a row of those
    # a NaN.
    lowest = torch.finfo(dtype).min / 2
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, lowest)
