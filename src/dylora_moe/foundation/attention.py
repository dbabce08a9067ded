"""Attention on a CPU for the lengths that are trained and prompted: plain matrix products.

torch's fused CPU kernel spends 8.7 ms forward and backward on eight rows of 72 tokens (9 heads of
64, bf16), these products 1.2 ms; it pays only where the scores no longer fit the caches. Registered
as an attention implementation of transformers. Knows queries, keys and masks; knows no model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "dylora_grouped"

MOST_SCORES = 1 << 22
"""Scores of a layer (rows x heads x queries x keys) up to which products pay; the backward pass
keeps them, 8 MiB a layer in bf16."""


def use_grouped_attention(model: PreTrainedModel) -> bool:
    """Switches a model on a CPU from torch's fused attention to this one; whether it did.

    Models that are elsewhere, that run another attention or that cannot be switched stay as they
    are.
    """
    config = model.config.get_text_config()
    if model.device.type != "cpu" or config._attn_implementation != "sdpa":
        return False
    if not model._can_set_attn_implementation():
        return False
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, grouped_mask)
    model.set_attn_implementation(NAME)
    return True


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
        attention_mask: additive `[batch, 1, queries, keys]`; None: every key is seen.
        dropout: of the attention's weights; above 0 torch's own kernel runs.
        scaling: of the scores; `d ** -0.5` where None.
        kwargs: handed to torch's kernel where that runs (long rows, one new token).

    Returns:
        The heads' outputs `[batch, queries, heads, d]`, and None for the weights.
    """
    rows, heads, queries, width = query.shape
    groups, keys = key.shape[1], key.shape[2]
    # One new token sees every key; more without a mask are causal, which only torch's kernel knows.
    masked = attention_mask is not None or (queries == 1 and rows > 1)
    if not masked or dropout > 0.0 or rows * heads * queries * keys > MOST_SCORES:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    share = heads // groups
    scale = width**-0.5 if scaling is None else scaling
    folded = (query * scale).reshape(rows, groups, share * queries, width)
    scores = torch.matmul(folded, key.transpose(2, 3)).view(rows, groups, share, queries, keys)
    if attention_mask is not None:
        scores = scores + attention_mask[:, :, None]
    weights = torch.softmax(scores, -1)
    output = torch.matmul(weights.view(rows, groups, share * queries, keys), value)
    return output.view(rows, heads, queries, -1).transpose(1, 2).contiguous(), None


def grouped_mask(
    *,
    q_length: int,
    dtype: torch.dtype = torch.float32,
    allow_is_causal_skip: bool = True,
    **rest: Any,
) -> Tensor | None:
    """The mask as numbers to add to the scores, made once for all layers.

    None for one new token that sees every key, as torch's kernel wants it.
    """
    seen: Tensor | None = sdpa_mask(
        q_length=q_length, allow_is_causal_skip=allow_is_causal_skip and q_length == 1, **rest
    )
    if seen is None:
        return None
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(
        ~seen, torch.finfo(dtype).min
    )
