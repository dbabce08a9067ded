"""Experts in and out: PEFT adapters that somebody already has, and plain adapters for others."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from dylora_moe.errors import DataError, PoolError
from dylora_moe.lifecycle.answering import prompt_features
from dylora_moe.lifecycle.change import (
    Stores,
    all_or_nothing,
    commit,
    gate_event,
    keeping,
    load_card,
    store_expert,
    store_skill,
    weigh,
)
from dylora_moe.lifecycle.live import LivePool, LiveSkill
from dylora_moe.lifecycle.names import checked_name
from dylora_moe.lifecycle.observation import sides
from dylora_moe.lifecycle.recipe import Recipe
from dylora_moe.lifecycle.router_change import adapt_router, router_event
from dylora_moe.lifecycle.scorecard import Scorecard
from dylora_moe.ports import ArtifactStore
from dylora_moe.records import Arrival, Event, Example, ExpertVersion, pair

_FEWEST = 8
"""Prompts that a row of the router can be fitted on."""


def import_expert(
    live: LivePool,
    stores: Stores,
    recipe: Recipe,
    folder: Path,
    name: str,
    prompts: Sequence[str],
    examples: Sequence[Example] = (),
) -> ExpertVersion:
    """Brings a trained PEFT adapter into the pool as a mature expert.

    The gate is asked as for every change: an adapter whose prompts would draw away those of an
    older skill is not let in.

    Args:
        prompts: what its inputs look like; the router's row is fitted on them.
        examples: the same with answers, where there are any; part of them validates it later.

    Raises:
        DataError: too few prompts.
        ExpertError: the adapter does not fit the base.
        PoolError: the gate refused, or the name cannot be used.
    """
    distinct = list(dict.fromkeys(prompts))
    if len(distinct) < _FEWEST:
        raise DataError(
            f"{folder}: {len(distinct)} different prompts to route by; give at least {_FEWEST}"
        )
    alias = checked_name(live.revision, name)
    train, validation = _sides(live, recipe, folder, alias, examples)
    before = load_card(live, stores.artifacts)
    with all_or_nothing(live, stores):
        expert_id = stores.registry.next_expert_id()
        live.experts.load(expert_id, folder)
        seen = _seen(live, distinct, train)
        skill_id = _enrol(live, expert_id, alias, seen, validation)
        recipe = keeping(recipe, before)
        began = time.perf_counter()
        routed = router_event(live, adapt_router(live, recipe), time.perf_counter() - began, None)
        scored, decision = weigh(live, before, recipe, changed=[expert_id])
        gated = gate_event(before, scored, decision, recipe.tolerance, None)
        if not decision.promoted:
            numbers = {"what": f"import of {alias}", **gated.numbers}
            stores.registry.record(Event("error", numbers, decision.reason))
            raise PoolError(f"{alias} was not let in: {decision.reason}; the pool is as it was")
        told = [routed, gated]
        _store(live, stores, skill_id, folder, len(seen[1]), train, scored.card, told)
    return live.version(alias)


def _sides(
    live: LivePool, recipe: Recipe, folder: Path, alias: str, examples: Sequence[Example]
) -> tuple[list[Example], list[Example]]:
    """Rows to store as trained on and rows to validate by; none where only prompts came: a text
    without a prompt is one."""
    if not examples or not all(example.prompt for example in examples):
        return [], []
    train, validation = sides(live, Arrival(alias, tuple(examples)), recipe.validation_fraction)
    if not train:
        raise DataError(
            f"{folder}: skills of the pool are validated by all {len(examples)} rows; give others"
        )
    return train, validation


def _seen(
    live: LivePool, prompts: Sequence[str], train: Sequence[Example]
) -> tuple[Float[Tensor, "n d_features"], list[str]]:
    """Features of what the expert's inputs look like, with a key each: of whole rows where they
    came, since a conversation looks unlike its last question."""
    if train:
        return live.encode(train).features, [example.key for example in train]
    return prompt_features(live, prompts), [pair(prompt, "-").key for prompt in prompts]


def _enrol(
    live: LivePool,
    expert_id: str,
    alias: str,
    seen: tuple[Float[Tensor, "n d_features"], list[str]],
    validation: Sequence[Example],
) -> str:
    """Puts the rows' statistics into library and router; the id of the new skill."""
    skill_id = f"skill_{expert_id.removeprefix('expert_')}_import"
    live.versions[expert_id] = 1
    features, keys = seen
    skill = live.library.add_skill(skill_id, features, expert_id, keys)
    live.router.add_expert(skill_id, expert_id, skill.statistics)
    live.router.set_maturity({expert_id: 1.0})
    rows = live.encode(validation) if validation else None
    live.skills[skill_id] = LiveSkill(skill_id, alias, expert_id, tuple(validation), rows)
    return skill_id


def _store(
    live: LivePool,
    stores: Stores,
    skill_id: str,
    folder: Path,
    prompts: int,
    train: Sequence[Example],
    card: Scorecard,
    events: Sequence[Event],
) -> None:
    """Writes the imported expert and its skill, and commits them."""
    skill = live.skills[skill_id]
    alias, expert_id = skill.name, skill.expert_id
    path, files = store_expert(live, stores, expert_id, _card(live, alias, folder))
    version = ExpertVersion(
        expert_id=expert_id,
        skill_id=skill_id,
        alias=alias,
        version=1,
        lora_config=live.experts.config(expert_id),
        storage_path=path,
        files=files,
        maturity=1.0,
        history={"imported": True, "prompts": prompts},
    )
    record = store_skill(live, stores, skill_id, alias, train=train, validation=skill.validation)
    commit(
        live,
        stores,
        experts=(*live.revision.experts, version),
        skills=(*live.revision.skills, record),
        card=card,
        arrival=alias,
        note=f"imported {alias}",
        numbers={"action": "imported", "expert": alias, "version": 1, "skill": alias},
        events=events,
    )


def export_experts(
    experts: Sequence[ExpertVersion], artifacts: ArtifactStore, folder: Path
) -> list[Path]:
    """Copies experts out as plain PEFT adapters, `<folder>/<alias>`, each with its model card.

    Raises:
        PoolError: a folder of that name is there already, or it cannot be written.
        ArtifactError: a stored file is damaged.
    """
    targets = [folder / version.alias for version in experts]
    for target in targets:
        if target.exists():
            raise PoolError(f"{target} exists already; remove it or export to another folder")
    for version, target in zip(experts, targets, strict=True):
        sources = [artifacts.open(artifact) for artifact in version.files]
        staged = target.with_name(f".{target.name}.part")
        try:
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True)
            for source in sources:
                shutil.copy2(source, staged / source.name)
            staged.rename(target)
        except OSError as error:
            raise PoolError(
                f"{target} cannot be written: {error.strerror}; export to another folder"
            ) from error
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return targets


def _card(live: LivePool, alias: str, folder: Path) -> str:
    return (
        f"---\nbase_model: {live.experts.base_name}\nlibrary_name: peft\n"
        f"tags: [lora, dylora-moe]\n---\n\n# {alias}\n\n"
        f"A LoRA expert for `{live.experts.base_name}`, imported from `{folder.name}`.\n"
    )
