"""The arms that share the bank of LoRAs and differ in who chooses: the truth, a method, a mistake.

The bank is what a stream could at best have grown: one adapter for each true skill, on all of its
rows. So these arms are told the skills of the training rows, and show what the choice costs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dylora_moe.build.pool import Pool
from dylora_moe.errors import DataError
from dylora_moe.evaluation.continual.answers import Decision, decisions
from dylora_moe.evaluation.continual.arms.arm import ArmKind, Setting
from dylora_moe.evaluation.continual.arms.bank import Bank
from dylora_moe.evaluation.continual.arms.choosers import Choice, Features
from dylora_moe.evaluation.continual.arms.empty_pool import empty_pool
from dylora_moe.evaluation.continual.arms.visits import end_of
from dylora_moe.evaluation.continual.results import ArmResult, Stage, mean_loss
from dylora_moe.evaluation.continual.streams import STREAMS
from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.routing.fit import fit_correction
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.routing.routing import Routing

_EVERYWHERE = frozenset(STREAMS)

Assignment = Callable[[Sequence[str], int], dict[str, str]]
"""Whose adapter answers each skill's rows, given the skills and the seed."""

Chooser = Callable[[Features, Tensor, int], Choice]
"""Given the features of the training rows by skill, those of the rows to answer, and the seed."""


@dataclass(frozen=True)
class Assigned:
    """Each row is answered by the adapter that its true skill was assigned."""

    name: str
    title: str
    assign: Assignment
    streams: frozenset[str] = _EVERYWHERE
    kind: ArmKind = "trained"

    def run(self, setting: Setting) -> ArmResult:
        """Answers the test rows; text of no skill has no true id, so no loss is measured on it."""
        bank = Bank(setting)
        by = self.assign(bank.skills, setting.seed)
        gates = bank.pinned([by[skill] for skill in bank.learner.asked.skills])
        return _result(self.name, setting, bank, gates)


def oracle(skills: Sequence[str], seed: int) -> dict[str, str]:
    """Each skill's own."""
    return {skill: skill for skill in skills}


def derangement(skills: Sequence[str], seed: int) -> dict[str, str]:
    """Another's for each skill, each once.

    Raises:
        DataError: there is no other skill.
    """
    if len(skills) < 2:
        raise DataError("one skill alone cannot be shuffled; bring two or more")
    rng, order = random.Random(f"{seed}:shuffled"), list(skills)
    while any(own == other for own, other in zip(skills, order, strict=True)):
        rng.shuffle(order)
    return dict(zip(skills, order, strict=True))


@dataclass(frozen=True)
class Chosen:
    """Each row is answered by the adapter of the skill that a method chooses for it."""

    name: str
    title: str
    choose: Chooser
    streams: frozenset[str] = _EVERYWHERE
    kind: ArmKind = "trained"

    def run(self, setting: Setting) -> ArmResult:
        """Fits the method on the training rows and answers the test rows."""
        bank = Bank(setting)
        train = {skill: bank.features(skill) for skill in bank.skills}
        asked = bank.test_features
        # Fitted once for all that is to be chosen for.
        choice = self.choose(train, torch.cat([asked, bank.neutral_features]), setting.seed)
        named, count = choice.named, len(asked)
        gates, foreign = bank.pinned(named[:count]), bank.pinned(named[count:])
        return _result(self.name, setting, bank, gates, choice.decided[:count], foreign)


@dataclass(frozen=True)
class OurRouter:
    """The bank with this project's router: the closed form with its row for no expert, and the
    correction where the settings ask for one. Every adapter counts as mature."""

    name: str = "bank-router"
    title: str = "the bank with this project's router"
    streams: frozenset[str] = _EVERYWHERE
    kind: ArmKind = "trained"

    def run(self, setting: Setting) -> ArmResult:
        """Fits the router on the training rows and answers the test rows."""
        bank = Bank(setting)
        return by_our_router(self.name, setting, bank, own_features(setting), bank.owners)


def by_our_router(
    name: str, setting: Setting, bank: Bank, own: Tensor, owners: Mapping[str, str]
) -> ArmResult:
    """What an arm hands back whose adapters this project's router chooses among.

    Args:
        name: of the arm.
        setting: of the arm.
        bank: the adapters and the rows that the router is fitted on.
        own: features of what the base writes by itself.
        owners: true skill of each adapter, by its name in the model, for what is noted.
    """
    router = fitted_router(bank, setting, own)
    with torch.no_grad():
        routing: Routing = router(bank.test_features)
        foreign: Routing = router(bank.neutral_features)
    noted = decisions(routing, owners)
    return _result(name, setting, bank, routing, noted, foreign)


def own_features(setting: Setting) -> Tensor:
    """Tap features of what the base writes by itself: those of every pool of the run."""
    path, device, dtype = empty_pool(setting), setting.device, setting.dtype
    with Pool.open(path, device=device, dtype=dtype) as pool:
        own: Tensor = pool.live.own
    return own


def fitted_router(bank: Bank, setting: Setting, own: Tensor) -> DynamicHybridRouter:
    """The pool's router over the bank's skills, as `lifecycle` would leave it.

    Args:
        bank: with the skills' rows.
        setting: whose `learn.router` it goes by.
        own: features of what the base writes by itself.
    """
    told = setting.learn.router
    given = {"gate": told.gate, "top_k": told.top_k, "none_share": told.none_share}
    shape: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    router = DynamicHybridRouter(own.shape[1], **shape)
    router.set_none(FeatureStatistics.from_features(own))
    features = {skill: bank.features(skill) for skill in bank.skills}
    for skill, rows in features.items():
        expert = bank.adapters[skill].expert
        router.add_expert(skill, expert, FeatureStatistics.from_features(rows))
    router.set_maturity(dict.fromkeys(bank.owners, 1.0))
    router.anneal(1.0)
    fit_correction(
        router,
        features,
        own,
        steps=told.fit_steps,
        seed=setting.seed,
        balance=told.balance,
        z=told.z,
        entropy=told.entropy,
    )
    return router


def _result(
    name: str,
    setting: Setting,
    bank: Bank,
    gates: Gates | Routing,
    decided: Sequence[Decision] | None = None,
    foreign: Gates | Routing | None = None,
) -> ArmResult:
    answered = bank.answer(gates, decided)
    after, skill = end_of(setting.stream)
    neutral = () if foreign is None else bank.learner.neutral_losses(lambda _: foreign)
    return ArmResult(
        arm=name,
        stream=setting.stream.kind,
        seed=setting.seed,
        stages=(Stage(after, skill, answered),),
        trained_tokens=bank.tokens,
        seconds=bank.seconds,
        parameters=bank.learner.parameters(),
        parameters_in_use=bank.parameters_in_use(gates),
        base_loss=mean_loss(neutral),
        neutral=neutral,
        details={"adapters": {skill: one.folder.name for skill, one in bank.adapters.items()}},
    )
