"""Every arm of the bench by its name."""

from __future__ import annotations

from collections.abc import Mapping

from dylora_moe.evaluation.continual.arms.arm import Arm, Setting
from dylora_moe.evaluation.continual.arms.banked import (
    Assigned,
    Chosen,
    OurRouter,
    derangement,
    oracle,
)
from dylora_moe.evaluation.continual.arms.choosers import (
    centroid,
    learned_keys,
    linear,
    recursive_least_squares,
)
from dylora_moe.evaluation.continual.arms.detectors import DETECTORS
from dylora_moe.evaluation.continual.arms.ewc import Consolidated
from dylora_moe.evaluation.continual.arms.fixed import FixedRouter
from dylora_moe.evaluation.continual.arms.full import FullSequential
from dylora_moe.evaluation.continual.arms.joint import FixedJoint
from dylora_moe.evaluation.continual.arms.logits import OursByLogits
from dylora_moe.evaluation.continual.arms.multi_task import BaseAlone, MultiTask
from dylora_moe.evaluation.continual.arms.olora import OLora
from dylora_moe.evaluation.continual.arms.ours import Ours
from dylora_moe.evaluation.continual.arms.sequential import Nothing, Replay, Sequential

__all__ = ["ARMS", "Arm", "Setting"]

_ALL: tuple[Arm, ...] = (
    Ours(),
    BaseAlone(),
    FullSequential(),
    Sequential("sequential-lora", "one LoRA, trained on in sequence", lambda _: Nothing()),
    Sequential("sequential-replay", "the same with 2% of earlier rows mixed in", Replay),
    Sequential("ewc", "the same, held by elastic weight consolidation", Consolidated),
    OLora(),
    OLora("o-lora-squared", "O-LoRA with its overlaps squared, as its paper has it", squared=True),
    MultiTask(),
    Assigned("oracle-bank", "a LoRA for each skill, chosen by the true id", oracle),
    Chosen("bank-centroid", "the bank with the nearest centroid", centroid),
    Chosen("bank-l2p", "the bank with learned keys, as L2P has them", learned_keys),
    Chosen("bank-rls", "the bank with recursive least squares", recursive_least_squares),
    OurRouter(),
    Chosen("bank-linear", "the bank with a linear gate trained on all skills at once", linear),
    FixedRouter(),
    FixedJoint(),
    OursByLogits(),
    *DETECTORS,
    Assigned("shuffled", "the bank with its ids shuffled: must fail", derangement),
)

ARMS: Mapping[str, Arm] = {arm.name: arm for arm in _ALL}
"""By name, in the order in which they are run and shown."""
