"""LoRAs whose deltas are summed by the softmax of a linear gate, and the gradient of both.

The gate decides for each sequence, by the tap features of its prompt, as this project's does. The
task's loss trains both, and a balance loss keeps the experts in use (Fedus, Zoph and Shazeer 2022,
"Switch Transformers", eq. 4 to 6). Knows a learner, rows and passes; knows no stream and no arm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dylora_moe.evaluation.continual.arms.choosers import Standard
from dylora_moe.evaluation.continual.arms.lora_learner import LoraLearner
from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.seeding import seeded
from dylora_moe.routing.losses import balance_loss
from dylora_moe.training.best import Weights
from dylora_moe.training.phases import Phase
from dylora_moe.training.rows import Rows
from dylora_moe.training.updates import Pass

_GATE = "gate."


class Mixture:
    """Experts and the gate that weighs them.

    Args:
        learner: whose base they are on; the experts are added to it.
        count: of experts, each begun from a seed of its own.
        standard: of the features that the gate reads.
        seed: of experts and gate.

    Attributes:
        experts: their names.
    """

    def __init__(self, learner: LoraLearner, count: int, standard: Standard, seed: int) -> None:
        self.learner, self._standard = learner, standard
        self.experts = tuple(f"expert_{number}" for number in range(1, count + 1))
        for number, name in enumerate(self.experts):
            # Experts that begin alike would stay alike.
            learner.add(name, seed + number)
        device = learner.model.device
        with seeded(seed, device):
            self._gate = nn.Linear(len(standard.mean), count).to(device)

    def probabilities(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n n_experts"]:
        """The gate's softmax over all experts; with gradient to the gate."""
        read = self._standard(features).float().to(self.learner.model.device)
        shares: Tensor = self._gate(read).softmax(-1)
        return shares

    @torch.no_grad()
    def gates(self, rows: Rows) -> Gates:
        """The weights by which rows are answered."""
        return Gates(self.experts, self.probabilities(rows.features), len(self.experts))

    def optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        """AdamW at one rate for both; the gate without weight decay."""
        parts = [self.learner.experts.parameters_of(name) for name in self.experts]
        matrices = [matrix for part in parts for matrix in part.values()]
        groups = [
            {"params": matrices, "weight_decay": phase.weight_decay},
            {"params": list(self._gate.parameters()), "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=phase.learning_rate)

    def backward(self, train: Rows, passes: Sequence[Pass], balance: float) -> None:
        """Leaves an update's gradient: the answers' loss, token by token over the whole update, and
        the balance loss over its rows."""
        model, targets = self.learner.model, train.targets
        pad = self.learner.base.tokenizer.pad_token_id
        rows = [row for one in passes for row in one]
        for one in passes:
            batch, trunk = train.batch(one, pad_id=pad, device=model.device)
            weights = self.probabilities(train.features[list(one)])
            gates = Gates(self.experts, weights, len(self.experts))
            count = max(1, sum(targets[row] for row in rows))
            output = model(
                **batch, trunk=trunk, gates=gates, loss_only=True, num_items_in_batch=count
            )
            output.loss.backward()
        (balance * balance_loss(self.probabilities(train.features[rows]))).backward()

    def copy(self) -> Weights:
        """Copies of all matrices and of the gate, on the CPU."""
        kept = {f"{_GATE}{name}": p.detach().cpu().clone() for name, p in self._parts()}
        for expert in self.experts:
            state = self.learner.experts.state(expert)
            kept |= {f"{expert}/{name}": matrix for name, matrix in state.items()}
        return kept

    def load(self, weights: Weights) -> None:
        """Puts them back."""
        with torch.no_grad():
            for name, parameter in self._parts():
                parameter.copy_(weights[f"{_GATE}{name}"])
        for expert in self.experts:
            own = f"{expert}/"
            state = {n.removeprefix(own): m for n, m in weights.items() if n.startswith(own)}
            self.learner.experts.restore(expert, state)

    def _parts(self) -> list[tuple[str, nn.Parameter]]:
        return list(self._gate.named_parameters())
