"""Mean last-layer states of prompts: what the usual cosine tests for novelty look at.

Costs a whole pass of the base per row, so it is only computed where such a test was chosen.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.lifecycle.live import LivePool
from dylora_moe.text.batching import length_grouped
from dylora_moe.training.rows import Rows

_BATCH_TOKENS = 4096


@torch.no_grad()
def last_layer_states(live: LivePool, rows: Rows) -> Float[Tensor, "n d_model"]:
    """The base's last hidden state, averaged over each row's prompt, with unit norm."""
    lengths = rows.lengths
    found = torch.empty(len(rows), live.base.anatomy.d_model)
    pad = live.base.tokenizer.pad_token_id
    with live.model.passes.bound(None):
        for group in length_grouped(lengths, max_tokens=max(_BATCH_TOKENS, *lengths)):
            batch, _ = rows.batch(group, pad_id=pad, device=live.base.device)
            states = live.base.model.base_model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                use_cache=False,
            )[0].float()
            mask = batch["prompt_mask"][..., None]
            mean = (states * mask).sum(1) / mask.sum(1)
            found[group] = torch.nn.functional.normalize(mean, dim=-1).cpu()
    return found
