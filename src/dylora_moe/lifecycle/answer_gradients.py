"""Gradients of the base's answer loss: what a novelty test may look at instead of states.

A state says what a row is about; its gradient, what the base lacks for its answer. It is taken with
respect to one vector that is added to all of a row's last hidden states: as wide as a state, the
same in every pool of a base, and known after a forward pass and the head's own backward one.

Source: Huang, Geng and Li (2021), "On the importance of gradients for detecting distributional
shifts in the wild": gradients tell what is new where states do not. They take the norm of the
head's; here the direction is kept, and the target is the answer.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.lifecycle.live import LivePool
from dylora_moe.model.head import adding
from dylora_moe.records import BASE_NAME
from dylora_moe.text.batching import length_grouped
from dylora_moe.training.rows import Rows

_BATCH_TOKENS = 2048


def answer_gradients(live: LivePool, rows: Rows) -> Float[Tensor, "n d_model"]:
    """The gradient of each row's mean answer loss, under the base alone.

    Starts at the tap, and no block has a backward pass.
    """
    lengths, device = rows.lengths, live.base.device
    found = torch.empty(len(rows), live.base.anatomy.d_model)
    pad = live.base.tokenizer.pad_token_id
    head = live.base.model.get_submodule(live.base.anatomy.head_name)
    for group in length_grouped(lengths, max_tokens=max(_BATCH_TOKENS, *lengths)):
        batch, trunk = rows.batch(group, pad_id=pad, device=device)
        vectors = torch.zeros(len(group), found.shape[1], device=device, requires_grad=True)
        with torch.enable_grad(), adding(head, vectors):
            # Divided by one, not by the batch's tokens: each row has a mean of its own.
            output = live.model(
                **batch, trunk=trunk, expert=BASE_NAME, loss_only=True, num_items_in_batch=1
            )
            (gradient,) = torch.autograd.grad(output.loss, vectors)
        found[group] = (gradient / output.row_tokens.clamp(min=1)[:, None]).cpu()
    return found
