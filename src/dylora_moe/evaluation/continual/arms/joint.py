"""A mixture of LoRAs of fixed size: experts and a linear gate trained together from the start.

As mixtures of LoRAs are usually made (Dou et al. 2024, "LoRAMoE", arXiv 2312.09979; Luo et al.
2024, "MoELoRA", arXiv 2402.12851), as `arms.mixture` has it, with as many experts as the pool grew.
It sees all rows of the stream at once, shuffled, for as many tokens, and is told no ids. The rows
that the pool would validate on choose the epoch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils import clip_grad_norm_
from transformers import get_scheduler

from dylora_moe.errors import TrainingError
from dylora_moe.evaluation.continual.answers import Decision, answer_rows
from dylora_moe.evaluation.continual.arms.arm import ArmKind, Setting
from dylora_moe.evaluation.continual.arms.choosers import Standard
from dylora_moe.evaluation.continual.arms.fixed import experts_of
from dylora_moe.evaluation.continual.arms.lora_learner import LoraLearner, phase_of, sides
from dylora_moe.evaluation.continual.arms.mixture import Mixture
from dylora_moe.evaluation.continual.arms.visits import end_of, most_of
from dylora_moe.evaluation.continual.results import ArmResult, Stage
from dylora_moe.evaluation.continual.streams import STREAMS
from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.seeding import seeded
from dylora_moe.records import Example
from dylora_moe.training.best import BestWeights
from dylora_moe.training.gradient import MAX_NORM
from dylora_moe.training.measure import answer_losses
from dylora_moe.training.phases import scheduler_arguments
from dylora_moe.training.rows import Rows
from dylora_moe.training.updates import plan_updates

BALANCE = 0.01
"""Coefficient of the balance loss: that of Switch Transformers."""


@dataclass(frozen=True)
class FixedJoint:
    """The arm."""

    name: str = "fixed-joint"
    title: str = "as many LoRAs as this project grew, trained together with a linear gate"
    streams: frozenset[str] = frozenset(STREAMS)
    kind: ArmKind = "sized"
    balance: float = BALANCE

    def run(self, setting: Setting) -> ArmResult:
        """Trains experts and gate on everything and answers the test rows.

        Raises:
            ConfigError: nobody knows how many experts the pool grew.
            TrainingError: the loss is not finite.
        """
        count, learner = experts_of(setting), LoraLearner(setting)
        rows = [row for batch in setting.stream.batches for row in batch]
        # Mixed traffic is mixed already; of other streams the order tells of the skills.
        random.Random(f"{setting.seed}:fixed-joint").shuffle(rows)
        train, watched = sides(rows, setting.learn.validation_fraction)
        taught = learner.encode(train)
        mixture = Mixture(learner, count, Standard.of(taught.features), setting.seed)
        loss = self._train(mixture, taught, learner.encode(watched), setting)
        setting.told(f"{count} experts, {learner.epochs:.2f} epochs: loss {loss:.3f}")
        owners = _owners(mixture.gates(taught), train, setting)
        gates = mixture.gates(learner.asked.rows)
        noted = _noted(gates, owners)
        answered = answer_rows(learner.model, learner.asked, gates, decided=noted)
        stage = Stage(*end_of(setting.stream), answered)
        details = {"experts_grown": count, "owners": owners, "balance": self.balance, "loss": loss}
        return learner.result(self.name, [stage], mixture.gates, details)

    def _train(self, mixture: Mixture, train: Rows, watched: Rows, setting: Setting) -> float:
        """Trains; the loss on the watched rows of the best epoch, whose weights are kept."""
        learner = mixture.learner
        phase = phase_of(setting, learner.epochs)
        plan = plan_updates(train.lengths, phase, setting.seed)
        optimizer = mixture.optimizer(phase)
        schedule = get_scheduler(optimizer=optimizer, **scheduler_arguments(phase, plan.steps))
        best = BestWeights(phase.patience)
        learner.experts.set_trainable(mixture.experts)
        with seeded(setting.seed, learner.model.device):
            for step, passes in enumerate(plan.updates, 1):
                learner.model.train()
                mixture.backward(train, passes, self.balance)
                _step(step, optimizer)
                schedule.step()
                learner.trained_tokens += sum(train.lengths[row] for rows in passes for row in rows)
                if step in plan.epoch_ends:
                    found = answer_losses(learner.model, watched, gates=mixture.gates(watched)).mean
                    best.offer(step, found, {}, mixture.copy)
        learner.experts.freeze()
        mixture.load(best.weights)
        return best.loss


def _step(step: int, optimizer: torch.optim.Optimizer) -> None:
    """Takes the gradient that is there, clipped."""
    for group in optimizer.param_groups:
        norm = clip_grad_norm_(group["params"], MAX_NORM)
        if not bool(norm.isfinite()):
            raise TrainingError(f"step {step}: the gradient is not finite; lower the rate")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _owners(gates: Gates, rows: Sequence[Example], setting: Setting) -> dict[str, str]:
    """The true skill of most of the rows that each expert weighs most in; experts that are first in
    none are not in it."""
    first = gates.weights.argmax(-1).tolist()
    found = {}
    for place, expert in enumerate(gates.experts):
        own = [row for row, best in zip(rows, first, strict=True) if best == place]
        if skill := most_of(setting.stream, own):
            found[expert] = skill
    return found


def _noted(gates: Gates, owners: dict[str, str]) -> list[Decision]:
    """The expert of each row's largest weight, by its skill's name, with that weight."""
    shares, best = gates.weights.max(-1)
    names = [gates.experts[place] for place in best.tolist()]
    return [
        (owners.get(name, name), share) for name, share in zip(names, shares.tolist(), strict=True)
    ]
