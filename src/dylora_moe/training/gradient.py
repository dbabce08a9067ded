"""The gradient of one update: as many forward passes from the tap as memory takes, then clipped.

Knows a task, a phase and a step; knows nothing of optimizers, epochs or checkpoints. The gradient
is the same however the update is cut into passes: every pass's summed loss is divided by the whole
update's trained tokens, and the gate's losses are taken once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from dylora_moe.errors import TrainingError
from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.trunk import TrunkBatch
from dylora_moe.model.distillation import Distillation
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.records import BASE_NAME
from dylora_moe.routing.routing import Routing
from dylora_moe.text.batching import Batch
from dylora_moe.training.distilling import Lessons
from dylora_moe.training.learnables import Learnables
from dylora_moe.training.memory import MicroBatches, first_line, is_out_of_memory
from dylora_moe.training.objective import (
    Penalty,
    Rehearsal,
    RouterLosses,
    RouterLossWeights,
    mixture_gates,
    router_losses,
)
from dylora_moe.training.phases import Phase
from dylora_moe.training.rows import Rows
from dylora_moe.training.updates import Pass

MAX_NORM = 1.0
"""Gradients of the expert and of the gate are clipped to this, each by itself."""

_FP16_SCALE = 1024.0


@dataclass(frozen=True, eq=False)
class Task:
    """What is learned, the same in every phase.

    Attributes:
        train: rows to learn from.
        evaluation: named sets of rows that are measured.
        target: the set whose loss says which weights are best.
        neighbours: frozen experts it may train in mixture with.
        rehearsal: stored features for the gate.
        losses: coefficients of the gate's losses.
        beside: frozen experts that add their whole deltas in every row, while training and
            measuring.
        penalty: added to the answers' loss, once an update.
        lessons: what teachers say of the training rows, for the phases that distil.
    """

    expert_id: str
    train: Rows
    evaluation: Mapping[str, Rows]
    target: str
    neighbours: tuple[str, ...]
    rehearsal: Rehearsal | None
    losses: RouterLossWeights
    beside: tuple[str, ...] = ()
    penalty: Penalty | None = None
    lessons: Lessons | None = None

    def summed(self, rows: int, device: torch.device) -> Gates:
        """The expert and all that stand beside it, each at weight one in every row."""
        return Gates.all_of((self.expert_id, *self.beside), rows, device)


class UpdateGradient:
    """Leaves the gradient of an update on the parameters.

    Args:
        model: experts and gate set to learn already (`Learnables.learning`).
        task: what is learned.
        phase: in which mixture, and whether the gate learns.
        steps: optimizer steps of the phase.
        seed: of the rehearsal's choice.
        micro: splits updates into forward passes.

    Attributes:
        model: the model.
        groups: the parameters that learn, by expert id and `router`.
    """

    def __init__(
        self,
        model: DyLoRAMoE,
        task: Task,
        phase: Phase,
        steps: int,
        seed: int,
        micro: MicroBatches,
    ) -> None:
        self.model, self._task, self._phase = model, task, phase
        self._steps, self._seed, self._micro = steps, seed, micro
        self._learnables = Learnables(model, task.expert_id)
        self._targets = task.train.targets
        self._scale = _FP16_SCALE if model.dtype == torch.float16 else 1.0
        self._tried: Sequence[int] = ()
        self.groups: dict[str, list[nn.Parameter]] = {}
        self.regroup()
        if phase.train_gate:
            self.groups["router"] = list(self._learnables.gate.values())
        # Once: the closed form does not move while the correction learns.
        self._rehearsal = None
        if phase.train_gate and task.rehearsal is not None:
            self._rehearsal = task.rehearsal.prepared(model.router)

    def regroup(self) -> None:
        """Takes the expert's parameters anew, after its rank has grown."""
        self.groups[self._task.expert_id] = list(self._learnables.expert.values())

    def make(self, passes: Sequence[Pass], step: int) -> dict[str, Tensor]:
        """Makes and clips the gradient; the numbers of the update under their logged names.

        Where memory runs out the forward passes are halved and the update is begun again.

        Args:
            passes: rows of each forward pass.
            step: optimizer steps taken before in this phase.

        Raises:
            TrainingError: memory does not take one row alone.
        """
        while True:
            said = ""
            try:
                numbers = self._backward(passes, step)
                norms = {name: self._norm(name) for name in self.groups}
                if self._scale <= 1.0 or all(bool(norm.isfinite()) for norm in norms.values()):
                    break
                # fp16 gradients overflowed: once more, scaled up less.
                self._scale /= 8.0
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                said = first_line(error)
            self._clear()
            if said:
                self._micro.halve(self._tried, said)
        for name, parameters in self.groups.items():
            clip_grads_with_norm_(parameters, MAX_NORM, norms[name])
        return numbers | {f"grad_norm/{name}": norm for name, norm in norms.items()}

    def pass_output(
        self,
        rows: Sequence[int],
        step: int,
        targets: Tensor | int | None,
        *,
        without: bool = False,
        distillation: Distillation | None = None,
    ) -> Any:
        """The model's output of one forward pass, its summed loss divided by `targets`.

        Args:
            rows: indices into the training rows.
            step: decides the mixture.
            targets: trained tokens of the whole update; the pass's own where None.
            without: leave the expert out: what it is put upon.
            distillation: of these rows, in the loss too.
        """
        batch, trunk = self._task.train.batch(
            rows,
            pad_id=self.model.base.tokenizer.pad_token_id,
            device=self.model.device,
            packed=self._phase.packing,
        )
        gates = self._rest(len(rows)) if without else self._mixture(trunk, batch, step)
        return self.model(
            **batch,
            trunk=trunk,
            gates=gates,
            expert=BASE_NAME if gates is None else None,
            loss_only=True,
            distillation=distillation,
            num_items_in_batch=targets,
        )

    def _mixture(self, trunk: TrunkBatch, batch: Batch, step: int) -> Gates:
        task = self._task
        if task.beside:
            return task.summed(len(trunk.features), self.model.device)
        share = self._phase.dense_share(step, self._steps)
        # Alone in its rows, an expert is alone at every token.
        features = self.model.passes.features(trunk, batch) if share else trunk.features
        gates = mixture_gates(self.model.router, features, task.expert_id, task.neighbours, share)
        # For the gate's sake backward would go through the blocks that are frozen, too.
        return gates.detached() if self.model.experts.learns_from else gates

    def _rest(self, rows: int) -> Gates | None:
        beside = self._task.beside
        return Gates.all_of(beside, rows, self.model.device) if beside else None

    @torch.no_grad()
    def base_loss(self, passes: Sequence[Pass]) -> float:
        """The loss on an update's rows without the expert: what a first loss should be near."""
        targets = self._count(passes)
        while True:
            said = ""
            try:
                total = 0.0
                for rows in self._micro.split(passes):
                    self._tried = rows
                    total += float(self.pass_output(rows, 0, targets, without=True).loss)
                return total
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                said = first_line(error)
            self._micro.halve(self._tried, said)

    def silent(self) -> list[str]:
        """The expert's tensors that should learn and got no gradient, or nothing but zeros."""
        return [
            name
            for name, p in self._learnables.expert.items()
            if p.requires_grad and (p.grad is None or not bool(p.grad.any()))
        ]

    def _backward(self, passes: Sequence[Pass], step: int) -> dict[str, Tensor]:
        targets, lessons, device = self._count(passes), self._task.lessons, self.model.device
        coefficient = 0.0 if lessons is None else self._phase.distillation
        total, apart = torch.zeros((), device=device), torch.zeros((), device=device)
        for rows in self._micro.split(passes):
            self._tried = rows
            term = None if lessons is None else lessons.of(rows, coefficient, device)
            loss = (output := self.pass_output(rows, step, targets, distillation=term)).loss
            if not loss.requires_grad:
                raise TrainingError(
                    f"the loss does not depend on {self._task.expert_id}, so nothing can be "
                    "learned; its adapted layers are not in the pass: check its targets"
                )
            (loss * self._scale).backward()
            total += loss.detach()
            if output.divergence is not None:
                # What is told is the answers' loss, as in every other phase.
                total -= coefficient * output.divergence
                apart += output.divergence
        numbers = {"loss": total} | ({"distillation_loss": apart} if coefficient else {})
        if (penalty := self._task.penalty) is not None:
            value = penalty.value()
            (value * self._scale).backward()
            numbers[penalty.logged] = value.detach()
        if self._phase.train_gate:
            gate = self._router_losses(passes, step)
            if gate.total.requires_grad:
                (gate.total * self._scale).backward()
            numbers |= {name: part.detach() for name, part in gate.named().items()}
            routing: Routing | None = gate.routing
        else:
            routing = self._routing(passes)
        if self._scale != 1.0:
            for parameter in (p for group in self.groups.values() for p in group):
                if parameter.grad is not None:
                    parameter.grad.div_(self._scale)
        if routing is not None:
            numbers["routing_entropy"] = routing.entropy.detach().mean()
            shares = zip(routing.experts, routing.load, strict=True)
            numbers |= {f"expert_usage/{name}": share for name, share in shares}
        return numbers

    def _router_losses(self, passes: Sequence[Pass], step: int) -> RouterLosses:
        rehearsed = None
        if self._rehearsal is not None:
            # By step, not by a running generator: a resumed run draws the same.
            sample = self._rehearsal.sample(self._seed * 1_000_003 + step)
            rehearsed = sample.to(self.model.device)
        return router_losses(
            self.model.router, self._features(passes), rehearsed, self._task.losses
        )

    @torch.no_grad()
    def _routing(self, passes: Sequence[Pass]) -> Routing | None:
        """What the router, which does not learn now, says of the update's rows."""
        if not self.model.router.rows:
            return None
        routing: Routing = self.model.router(self._features(passes))
        return routing

    def _features(self, passes: Sequence[Pass]) -> Tensor:
        rows = [row for one in passes for row in one]
        return self._task.train.features[rows].to(self.model.device)

    def _count(self, passes: Sequence[Pass]) -> int:
        return max(1, sum(self._targets[row] for one in passes for row in one))

    def _norm(self, group: str) -> Tensor:
        grads = [p.grad for p in self.groups[group] if p.grad is not None]
        return get_total_norm(grads) if grads else torch.zeros((), device=self.model.device)

    def _clear(self) -> None:
        for parameters in self.groups.values():
            for parameter in parameters:
                parameter.grad = None
