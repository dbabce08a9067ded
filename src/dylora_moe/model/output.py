"""What a forward pass returns.

Knows fields; computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from dylora_moe.model.distillation import TeacherTargets
from dylora_moe.routing.routing import Routing


@dataclass
class RoutedOutput(CausalLMOutputWithPast):
    """A `CausalLMOutputWithPast` with the routing beside it.

    `logits` are `[batch, seq, vocabulary]`, or `[trained tokens, vocabulary]` in reading order
    where only those were asked for; `loss` is in nats per token. A *row* is a row of the batch, or
    a segment of a packed one.

    Attributes:
        routing: the gate's decision per row, or per token where the router decides for each; None
            where the caller decided.
        n_tokens: trained tokens in the batch, where labels were given.
        row_losses: mean loss of each row's trained tokens (0 where it has none), detached.
        row_tokens: trained tokens of each row.
        greedy: the token of the largest logit at each trained position, in reading order, where it
            was asked for.
        divergence: from the teacher, over the trained tokens as `loss` is, detached and without its
            coefficient, where there is a teacher; `loss` and `row_losses` then have the term in
            them.
        taught: what this pass says as a teacher, at each trained position, where it was asked for.
    """

    routing: Routing | None = None
    n_tokens: Int[Tensor, ""] | None = None
    row_losses: Float[Tensor, rows] | None = None
    row_tokens: Int[Tensor, rows] | None = None
    greedy: Int[Tensor, n] | None = None
    divergence: Float[Tensor, ""] | None = None
    taught: TeacherTargets | None = None
