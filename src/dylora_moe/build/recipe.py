"""Settings as people write them become the plain values that the learner works with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from dylora_moe.build.detectors import make_detector, representation_of
from dylora_moe.config import ExpertSettings, LearnSettings, PhaseSettings
from dylora_moe.lifecycle.recipe import ExpertShape, Recipe, TrafficRules
from dylora_moe.skills.growth import GrowthLimits
from dylora_moe.text.reading import read_examples
from dylora_moe.training.objective import RouterLossWeights
from dylora_moe.training.phases import Phase


def make_recipe(settings: LearnSettings) -> Recipe:
    """The recipe of these settings; reads the evaluation sets.

    Raises:
        DataError: a set that cannot be read.
    """
    novelty, expert, router = settings.novelty, settings.expert, settings.router
    frozen = {"freeze_below": expert.freeze_below}
    first = {"max_rank": expert.max_rank, "grow_below": expert.grow_below} | frozen
    new_expert = [_phase("consolidation", settings.consolidation, first)]
    if settings.seeding is not None:
        new_expert.insert(0, _phase("seeding", settings.seeding, first))
    text = settings.model_dump_json(exclude={"report_to"})
    return Recipe(
        seed=settings.seed,
        validation_fraction=settings.validation_fraction,
        max_length=settings.max_length,
        drop_long=settings.drop_long,
        detector=make_detector(novelty, settings.seed),
        representation=representation_of(novelty),
        growth=GrowthLimits(
            allowed=novelty.growth,
            max_experts=novelty.max_experts,
            max_parameters=novelty.max_parameters,
            cooldown=novelty.cooldown,
            # The verdict has counted all rows; what is left to train on after the split may be
            # fewer, and is enough if the verdict was.
            min_samples=2,
            min_tokens=1,
        ),
        shape=_shape(expert),
        new_expert=tuple(new_expert),
        more_data=(_phase("consolidation", settings.more_data, frozen),),
        replay=settings.replay,
        gate=router.gate,
        granularity=router.granularity,
        top_k=router.top_k,
        none_share=router.none_share,
        fit_steps=router.fit_steps,
        losses=RouterLossWeights(router.balance, router.z, router.entropy, router.rehearsal),
        tolerance=settings.gate.tolerance,
        generate=settings.generate_scores,
        gradient_checkpointing=settings.gradient_checkpointing,
        evaluation={name: tuple(read_examples(path)) for name, path in settings.evaluation.items()},
        target=settings.target,
        traffic=TrafficRules(novelty.strange_share, novelty.alike, novelty.min_cluster),
        temperature=settings.distillation_temperature,
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
    )


def _shape(expert: ExpertSettings) -> ExpertShape:
    most = max(expert.rank, expert.max_rank or 0)
    return ExpertShape(
        expert.rank, expert.alpha, expert.dropout, expert.targets, expert.start, most
    )


def _phase(
    name: Literal["seeding", "consolidation"], settings: PhaseSettings, expert: Mapping[str, Any]
) -> Phase:
    values = {**settings.model_dump(), **expert}
    return Phase(name=name, scheduler=values.pop("schedule"), **values)
