"""The output head at the trained positions: logits of those alone, or their loss without logits.

Knows a head and positions; knows nothing of routing. torch's own fused form
(`linear_cross_entropy`) is 20 times slower on a CPU in bf16 and less exact there (docs/lab-log.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from dylora_moe.foundation.base import Base
from dylora_moe.foundation.tap import Skip
from dylora_moe.model.distillation import (
    Distillation,
    TeacherTargets,
    divergence,
    joined,
    pull,
    targets_of,
)

_LOGITS = 1 << 24
"""Logits that are in memory at a time: 32 MiB in 16 bits."""

_CACHED = 1 << 20
"""Of these, what a CPU takes the softmax of in fp32 at a time, so that its passes stay in cache:
34 ms for 185 tokens and 49,152 classes with the gradient, where one piece took 46."""


@dataclass(frozen=True, eq=False)
class TargetLosses:
    """What the head says of targets.

    Attributes:
        losses: cross entropy of each in nats, fp32; and the distillation's term, where there is
            one.
        greedy: the token of the largest logit in the target's place, the first of equal ones; None
            where it was not asked for.
        divergences: what the term is of, without its coefficient and without gradient.
    """

    losses: Float[Tensor, n]
    greedy: Int[Tensor, n] | None
    divergences: Float[Tensor, n] | None


@contextmanager
def selecting(head: nn.Module, mask: Bool[Tensor, "batch seq"]) -> Iterator[None]:
    """Within it the head sees only the masked positions, `[1, n, d_model]` in reading order."""

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][mask.to(args[0].device)].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def adding(head: nn.Module, vectors: Float[Tensor, "batch d_model"]) -> Iterator[None]:
    """Within it a vector is added to all hidden states of a row before the head sees them.

    To be entered before the pass, since the head may be shown some positions only (`selecting`).
    """

    def add(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] + vectors[:, None].to(args[0]), *args[1:])

    handle = head.register_forward_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def passed_over(head: nn.Module) -> Iterator[None]:
    """Within it the head returns what it is given: a model's logits are its last hidden states."""
    vars(head)["forward"] = _Passed()
    try:
        yield
    finally:
        del vars(head)["forward"]


@torch.no_grad()
def ends_at_head(base: Base) -> bool:
    """Whether a base's logits are its head's product and nothing else.

    Some families scale or cap them afterwards, which a loss taken from the head would miss. A few
    tokens are run to see it: a padding token's state may be zero, which no scaling moves.
    """
    head = base.model.get_submodule(base.anatomy.head_name)
    if type(head) is not nn.Linear or head.weight.requires_grad:
        return False
    made: list[Tensor] = []
    handle = head.register_forward_hook(lambda _m, _a, output: made.append(output))
    try:
        rows = base.model.get_input_embeddings().weight.shape[0]
        tokens = (torch.arange(1, 9, device=base.device) % rows)[None]
        logits = base.model(input_ids=tokens, use_cache=False).logits
    finally:
        handle.remove()
    return len(made) == 1 and bool(made[0].any()) and torch.equal(logits, made[0])


def answer_losses_of(
    hidden: Float[Tensor, "n d_model"],
    head: nn.Linear,
    targets: Int[Tensor, " n"],
    *,
    greedy: bool = False,
    distillation: Distillation | None = None,
) -> TargetLosses:
    """Cross entropy of each target, with a gradient to the hidden states alone.

    The same as `cross_entropy(head(hidden).float(), targets)`; a piece of the logits exists at a
    time, and the gradient is taken while it does, so that they are never made twice.

    Args:
        hidden: the last hidden states, in the head's dtype.
        head: frozen.
        targets: token ids.
        greedy: say what token has the largest logit too: a pass over all logits more.
        distillation: its term is added to each target's loss: another softmax of all logits.
    """
    return TargetLosses(
        *_HeadLosses.apply(hidden, head.weight, head.bias, targets, greedy, distillation)
    )


def losses_of_logits(
    logits: Float[Tensor, "n vocabulary"],
    targets: Int[Tensor, " n"],
    *,
    greedy: bool = False,
    distillation: Distillation | None = None,
) -> TargetLosses:
    """`answer_losses_of` for logits that were made, with a gradient to them."""
    # fp32: a bf16 log-softmax over a large vocabulary is off in the second digit.
    losses = functional.cross_entropy(logits.float(), targets, reduction="none")
    apart = None
    if distillation is not None:
        apart = divergence(logits, distillation.targets)
        losses = losses + distillation.coefficient * apart
    return TargetLosses(
        losses,
        logits.argmax(-1) if greedy else None,
        None if apart is None else apart.detach(),
    )


@torch.no_grad()
def teacher_targets_of(
    hidden: Float[Tensor, "n d_model"], head: nn.Linear, temperature: float
) -> TeacherTargets:
    """What a teacher with these last hidden states says, a piece of its logits at a time."""
    step = max(1, _LOGITS // head.weight.shape[0])
    return joined(
        [
            targets_of(functional.linear(part, head.weight, head.bias), temperature)
            for part in hidden.split(step)
        ]
    )


class _Passed(Skip):
    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        asked: bool,
        distillation: Distillation | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        n = hidden.shape[0]
        losses = torch.empty(n, device=hidden.device)
        learns = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if learns else None
        greedy = torch.empty_like(targets) if asked else None
        apart = None if distillation is None else torch.empty_like(losses)
        step = max(1, _LOGITS // weight.shape[0])
        piece = max(1, _CACHED // weight.shape[0]) if hidden.device.type == "cpu" else step
        for start in range(0, n, step):
            part = slice(start, start + step)
            logits = functional.linear(hidden[part], weight, bias)
            for place in range(start, min(start + step, n), piece):
                rows = slice(place, min(place + piece, start + step, n))
                there = logits[rows.start - start : rows.stop - start]
                # fp32: a bf16 log-softmax over a large vocabulary is off in the second digit.
                values = there.float()
                drawn = None
                if distillation is not None and apart is not None:
                    drawn = pull(values, distillation.targets[rows])
                    apart[rows] = drawn.divergence
                own = values.gather(1, targets[rows, None])
                largest = values.amax(1, keepdim=True)
                if greedy is not None:
                    greedy[rows] = values.argmax(1)
                total = values.sub_(largest).exp_().sum(1, keepdim=True)
                losses[rows] = (total.log() + largest - own)[:, 0]
                if gradient is not None:
                    minus = torch.full_like(own, -1.0)
                    values.div_(total).scatter_add_(1, targets[rows, None], minus)
                    if distillation is not None and drawn is not None:
                        values.add_(drawn.gradient, alpha=distillation.coefficient)
                    there.copy_(values)
            if gradient is not None:
                torch.mm(logits.to(weight.dtype), weight, out=gradient[part])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        if distillation is not None and apart is not None:
            losses.add_(apart, alpha=distillation.coefficient)
            ctx.mark_non_differentiable(apart)
        return losses, greedy, apart

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Any) -> Any:
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * gradients[0][:, None].to(gradient.dtype), *(None,) * 5
