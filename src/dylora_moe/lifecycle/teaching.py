"""Trains an expert for a step: the phases, who collaborates, what is rehearsed, what is measured.

Knows the training room; knows nothing of what happens to the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.step import Step
from dylora_moe.ports import Run
from dylora_moe.records import BASE_NAME, MATURE_FROM, Example
from dylora_moe.training.expert import train_expert
from dylora_moe.training.objective import Rehearsal
from dylora_moe.training.outcome import TrainingOutcome
from dylora_moe.training.phases import Phase
from dylora_moe.training.rows import Rows

OWN = "own"
_NEIGHBOURS = 2


def teach(
    step: Step,
    run: Run,
    expert_id: str,
    phases: Sequence[Phase],
    train: Rows,
    evaluation: Mapping[str, Rows],
    *,
    teachers: Sequence[str],
    on_creation: Mapping[str, Any] | None = None,
) -> TrainingOutcome:
    """Runs the phases on an expert that is in the model and in the router.

    Args:
        teachers: experts that a phase which distils goes towards.
        evaluation: what `evaluation_sets` gave.
        on_creation: numbers logged once, before the first step.
    """
    live, watch = step.live, step.watch
    live.encode_validation()
    watch.stage("training", f"{expert_id} on {len(train)} rows")
    reporter = step.reporter(run)
    if on_creation:
        reporter.log(dict(on_creation), 0)
    return train_expert(
        live.model,
        expert_id,
        train=train,
        evaluation=evaluation,
        target=step.recipe.target or OWN,
        phases=phases,
        neighbours=neighbours(live, step, expert_id),
        rehearsal=rehearsal(live),
        losses=step.recipe.losses,
        teachers=teachers,
        temperature=step.recipe.temperature,
        folder=run.path,
        reporter=reporter,
        seed=step.recipe.seed,
        gradient_checkpointing=step.recipe.gradient_checkpointing,
        on_progress=watch.progress,
        on_warning=lambda message: step.warn(message, run),
    )


def evaluation_sets(step: Step, own: Rows) -> dict[str, Rows]:
    """What the training is measured on, by name: the skill's own validation rows, and the sets
    that the recipe names."""
    live, recipe = step.live, step.recipe
    sets = {OWN: own}
    for name, examples in recipe.evaluation.items():
        rows: Sequence[Example] = examples
        if recipe.drop_long:
            rows, _ = live.within(rows, live.limit(recipe.max_length))
        sets[name] = live.encode(rows, max_length=recipe.max_length)
    return sets


def target_of(step: Step, sets: Mapping[str, Rows]) -> Rows:
    """The rows that early stopping, the best weights and whether they are better go by."""
    return sets[step.recipe.target or OWN]


def neighbours(live: LivePool, step: Step, expert_id: str) -> tuple[str, ...]:
    """The nearest other experts, nearest first: whom a young expert collaborates with."""
    found = [live.skills[s].expert_id for s, _ in step.judgement.verdict.nearest]
    return tuple(e for e in dict.fromkeys(found) if e != expert_id)[:_NEIGHBOURS]


def mature_neighbours(live: LivePool, step: Step, expert_id: str) -> tuple[str, ...]:
    """Those of the neighbours that are mature: who may teach a young expert."""
    mature = live.router.maturity
    return tuple(e for e in neighbours(live, step, expert_id) if mature[e] >= MATURE_FROM)


def rehearsal(live: LivePool) -> Rehearsal:
    """The stored features of every skill and the base's own prompts."""
    features = {skill.skill_id: skill.features for skill in live.library.skills}
    return Rehearsal({**features, BASE_NAME: live.own})
