"""What a teacher says comes next, and how far a student is from it.

The divergence of the student's next-token distribution from the teacher's, both at a temperature,
times the temperature squared, which keeps its gradient as large as the answers' (Hinton, Vinyals
and Dean 2015, section 2). Of the teacher its likeliest tokens are kept one by one and all others as
one, so that what it said of many rows can be kept. Knows logits; knows nothing of models.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

TOP = 32
"""Tokens of the teacher's that are kept one by one."""


@dataclass(frozen=True, eq=False)
class TeacherTargets:
    """A teacher's next-token distributions at some positions, at one temperature.

    Attributes:
        tokens: the likeliest ones.
        probabilities: theirs, fp32.
        rest: that of all other tokens together.
        temperature: what the logits were divided by.
    """

    tokens: Int[Tensor, "n top"]
    probabilities: Float[Tensor, "n top"]
    rest: Float[Tensor, " n"]
    temperature: float

    def __getitem__(self, rows: slice) -> TeacherTargets:
        return self._each(lambda tensor: tensor[rows])

    def split(self, sizes: Sequence[int]) -> list[TeacherTargets]:
        """The same, cut into so many positions each."""
        ends = itertools.accumulate(sizes)
        return [self[end - size : end] for end, size in zip(ends, sizes, strict=True)]

    def to(self, device: torch.device | str) -> TeacherTargets:
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> TeacherTargets:
        tokens, probabilities = change(self.tokens), change(self.probabilities)
        return TeacherTargets(tokens, probabilities, change(self.rest), self.temperature)

    @property
    def _entropies(self) -> Float[Tensor, " n"]:
        """Sums of p log p."""
        each = torch.xlogy(self.probabilities, self.probabilities).sum(1)
        return each + torch.xlogy(self.rest, self.rest)


@dataclass(frozen=True, eq=False)
class Distillation:
    """A term of the loss at trained positions.

    Attributes:
        targets: of the positions, in reading order.
        coefficient: of the divergence beside the answers' loss.
    """

    targets: TeacherTargets
    coefficient: float


def joined(parts: Sequence[TeacherTargets]) -> TeacherTargets:
    """Positions behind one another; all at one temperature."""
    return TeacherTargets(
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.probabilities for part in parts]),
        torch.cat([part.rest for part in parts]),
        parts[0].temperature,
    )


@torch.no_grad()
def targets_of(logits: Float[Tensor, "n vocabulary"], temperature: float) -> TeacherTargets:
    """What a teacher with these logits says, of its `TOP` likeliest tokens one by one."""
    scaled = logits.float() / temperature
    values, tokens = scaled.topk(min(TOP, scaled.shape[1] - 1), dim=1)
    rest = scaled.scatter(1, tokens, float("-inf")).logsumexp(1)
    total = scaled.logsumexp(1)
    return TeacherTargets(
        tokens, (values - total[:, None]).exp(), (rest - total).exp(), temperature
    )


def divergence(
    logits: Float[Tensor, "n vocabulary"], targets: TeacherTargets
) -> Float[Tensor, " n"]:
    """Kullback-Leibler divergence at each position in nats, times the temperature squared; with
    gradient to the logits."""
    scaled = logits.float() / targets.temperature
    total = scaled.logsumexp(1)
    top = scaled.gather(1, targets.tokens) - total[:, None]
    rest = scaled.scatter(1, targets.tokens, float("-inf")).logsumexp(1) - total
    cross = (targets.probabilities * top).sum(1) + targets.rest * rest
    return targets.temperature**2 * (targets._entropies - cross)


@dataclass(frozen=True, eq=False)
class Pull:
    """A divergence with its gradient.

    Attributes:
        divergence: as `divergence` gives it.
        gradient: of each to the logits of its position.
    """

    divergence: Float[Tensor, " n"]
    gradient: Float[Tensor, "n vocabulary"]


def pull(logits: Float[Tensor, "n vocabulary"], targets: TeacherTargets) -> Pull:
    """The same as `divergence` without a graph: with student `q`, teacher `p` and the rest `r`, the
    gradient is `T (q_j - p_j)` for a kept token and `T q_j (1 - p_r / q_r)` for another.

    Args:
        logits: fp32; kept as they are.
        targets: of the same positions.
    """
    heat = targets.temperature
    largest = logits.amax(1, keepdim=True)
    powers = (logits - largest).div_(heat).exp_()
    top = powers.gather(1, targets.tokens)
    # Summed without the kept ones: what is left beside a probability of nearly one has no digit.
    powers.scatter_(1, targets.tokens, 0.0)
    rest = powers.sum(1).clamp(min=torch.finfo(powers.dtype).tiny)
    total = rest + top.sum(1)
    logs = (logits.gather(1, targets.tokens) - largest) / heat - total.log()[:, None]
    cross = (targets.probabilities * logs).sum(1) + targets.rest * (rest / total).log()
    powers.mul_((1.0 / total - targets.rest / rest)[:, None])
    powers.scatter_(1, targets.tokens, top / total[:, None] - targets.probabilities)
    return Pull(heat**2 * (targets._entropies - cross), powers.mul_(heat))
