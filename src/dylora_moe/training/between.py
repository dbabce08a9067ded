"""What becomes of an expert between two epochs: its rank grows, or blocks of it freeze.

Knows a phase's rules and what is kept; when it is asked, and what the loop makes of it, is the
trainer's. The rules stand in `growth` and `freezing`.
"""

from __future__ import annotations

from typing import Any

import torch

from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.training import freezing, growth
from dylora_moe.training.kept import Kept
from dylora_moe.training.learnables import Learnables
from dylora_moe.training.outcome import Freeze, Growth
from dylora_moe.training.phases import Phase
from dylora_moe.training.updates import UpdatePlan


class BetweenEpochs:
    """Takes up what an interrupted phase had come to.

    Args:
        model: with the expert in it.
        learnables: set to learn already.
        phase: its rules.
        plan: says where epochs end.
        kept: takes note of what was done.
        seed: of new rows of `A`.
    """

    def __init__(
        self,
        model: DyLoRAMoE,
        learnables: Learnables,
        phase: Phase,
        plan: UpdatePlan,
        kept: Kept,
        seed: int,
    ) -> None:
        self._experts, self._expert_id = model.experts, learnables.expert_id
        self._learnables = learnables
        self._phase, self._plan, self._kept, self._seed = phase, plan, kept, seed
        if phase.freeze_below and not kept.earlier:
            self._remember()
        if kept.learns_from:
            self._experts.learn_from(kept.learns_from)

    def is_due(self, step: int) -> bool:
        """Whether an epoch is over after so many steps, and another follows."""
        return step in self._plan.epoch_ends and step < self._plan.steps

    def change(
        self, step: int, before: float, loss: float, optimizer: torch.optim.Optimizer
    ) -> dict[str, Any]:
        """Grows or freezes by what an epoch came to; a growth lets every block learn again.

        Args:
            step: steps of the phase so far.
            before: the best loss before the epoch.
            loss: that after it.
            optimizer: of the expert's parameters, which may be others afterwards.

        Returns:
            Numbers to log.
        """
        numbers: dict[str, Any] = {}
        rank = self._experts.rank(self._expert_id)
        wanted = growth.grown(rank, self._phase.max_rank or 0)
        stalled = growth.has_stalled(before, loss, self._phase.grow_below)
        # A growth to one rank could not be taken back to several.
        if stalled and wanted > rank and self._experts.has_one_rank(self._expert_id):
            numbers = self._grow(step, rank, wanted, optimizer)
        elif self._phase.freeze_below:
            numbers = self._freeze(step)
        if self._phase.freeze_below:
            self._remember()
        return numbers

    def _grow(
        self, step: int, rank: int, wanted: int, optimizer: torch.optim.Optimizer
    ) -> dict[str, Any]:
        old = self._learnables.expert
        # By step: a resumed run draws the same.
        self._experts.grow_rank(self._expert_id, wanted, seed=self._seed + step)
        growth.carry_state(optimizer, old, self._learnables.expert)
        self._experts.learn_from(0)
        self._kept.growths.append(Growth(step, rank, wanted))
        self._kept.best.be_patient()
        return {
            "rank": wanted,
            f"expert_bytes/{self._expert_id}": self._experts.bytes(self._expert_id),
        }

    def _freeze(self, step: int) -> dict[str, Any]:
        changes = self._experts.changes(self._expert_id, self._kept.earlier)
        block = freezing.learns_from(changes, self._phase.freeze_below)
        if block > max(min(changes), self._kept.learns_from):
            self._experts.learn_from(block)
            self._kept.freezes.append(Freeze(step, block))
        return {"learns_from_block": max(block, self._kept.learns_from)} | {
            f"block_change/{index}": change for index, change in changes.items()
        }

    def _remember(self) -> None:
        self._kept.earlier = self._experts.state(self._expert_id)
