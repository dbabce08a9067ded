"""Elastic weight consolidation: earlier visits hold the weights that mattered to them.

Source: Kirkpatrick et al. (2017), "Overcoming catastrophic forgetting in neural networks", eq. 3:
`L(theta) + lambda / 2 * sum over earlier visits k and weights i of F_ki (theta_i - theta_ki)^2`.
`F_k` is the diagonal of the empirical Fisher information at the weights `theta_k` after visit `k`:
the mean over rows of the squared gradient of the row's loss. Knows an adapter's matrices and rows;
knows nothing of stages or results.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dylora_moe.evaluation.continual.arms.lora_learner import LoraLearner
from dylora_moe.evaluation.continual.arms.sequential import ONE
from dylora_moe.evaluation.continual.arms.visits import VisitRows
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.records import Example
from dylora_moe.training.learnables import Learnables
from dylora_moe.training.objective import Penalty
from dylora_moe.training.rows import Rows

STRENGTH = 50_000.0
"""Lambda, for losses in nats a token: of 0, 500, 5,000, 50,000 and 500,000 the one with the lowest
loss over three skills learned in sequence (1.28 nats a token where none is 1.76), on training rows
that were held back."""

FISHER_ROWS = 64
"""Rows of a visit that its Fisher information is the mean over: one pass back each."""

Matrices = Mapping[str, Tensor]


class Anchors:
    """The weights after each earlier visit, and how much each of them mattered.

    The sum of quadratics is one quadratic around the mean of their anchors weighted by their Fisher
    information, up to a constant without gradient; so it takes as much memory for any number of
    visits. After one visit the constant is zero.

    Args:
        strength: lambda.
    """

    def __init__(self, strength: float = STRENGTH) -> None:
        self._strength = strength
        self._fisher: dict[str, Tensor] = {}
        self._weighted: dict[str, Tensor] = {}
        self.visits = 0

    def add(self, weights: Matrices, fisher: Matrices) -> None:
        """Takes note of a visit.

        Args:
            weights: after it.
            fisher: what `fisher_of` gave at these weights.
        """
        for name, one in fisher.items():
            pull = one * weights[name].detach()
            self._fisher[name] = self._fisher[name] + one if self.visits else one.clone()
            self._weighted[name] = self._weighted[name] + pull if self.visits else pull
        self.visits += 1

    def value(self, weights: Mapping[str, nn.Parameter]) -> Tensor:
        """The penalty at some weights; zero before the first visit."""
        parts = [
            (fisher * (weights[name] - self._centre(name)).square()).sum()
            for name, fisher in self._fisher.items()
        ]
        if not parts:
            return torch.zeros(())
        return 0.5 * self._strength * torch.stack(parts).sum()

    def _centre(self, name: str) -> Tensor:
        fisher = self._fisher[name]
        # Where nothing ever mattered there is nothing to hold.
        return torch.where(fisher > 0, self._weighted[name] / fisher, 0.0)

    @property
    def name(self) -> str:
        """For the run's identity."""
        digest = hashlib.sha256()
        for tensors in (self._fisher, self._weighted):
            for name in sorted(tensors):
                digest.update(tensors[name].cpu().numpy().tobytes())
        return f"ewc {self._strength:g} {digest.hexdigest()[:16]}"


def fisher_of(
    model: DyLoRAMoE, expert: str, rows: Rows, only: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Mean over rows of the squared gradient of each row's token-mean loss, by matrix.

    The token mean, as the training's loss is one: a row with a long answer does not count more.

    Args:
        model: with the expert in it, which answers alone.
        expert: whose matrices.
        rows: with their answers.
        only: these rows alone.
    """
    learnables, chosen = Learnables(model, expert), list(range(len(rows)) if only is None else only)
    pad = model.base.tokenizer.pad_token_id
    with learnables.learning(train_gate=False):
        matrices = learnables.expert
        total = {name: torch.zeros_like(p) for name, p in matrices.items()}
        for row in chosen:
            batch, trunk = rows.batch([row], pad_id=pad, device=model.device)
            loss = model(**batch, trunk=trunk, expert=expert, loss_only=True).loss
            gradients = torch.autograd.grad(loss, list(matrices.values()))
            for name, gradient in zip(matrices, gradients, strict=True):
                total[name].addcmul_(gradient, gradient)
    return {name: value.detach() / len(chosen) for name, value in total.items()}


class Consolidated:
    """What the arm `ewc` keeps: an anchor for each visit, and no row.

    Args:
        seed: of the rows that the Fisher information is taken over.
        strength: lambda.
    """

    def __init__(self, seed: int, strength: float = STRENGTH) -> None:
        self._rng, self._anchors = random.Random(f"{seed}:fisher"), Anchors(strength)
        self._matrices: dict[str, nn.Parameter] = {}

    def rows(self) -> tuple[Example, ...]:
        return ()

    def penalty(self) -> Penalty | None:
        if not self._anchors.visits:
            return None
        anchors, matrices = self._anchors, self._matrices
        return Penalty(anchors.name, lambda: anchors.value(matrices))

    def keep(self, learner: LoraLearner, visit: VisitRows) -> None:
        count = min(FISHER_ROWS, len(visit.rows))
        rows = learner.encode(self._rng.sample(visit.rows, count))
        self._matrices = learner.experts.parameters_of(ONE)
        self._anchors.add(self._matrices, fisher_of(learner.model, ONE, rows))
