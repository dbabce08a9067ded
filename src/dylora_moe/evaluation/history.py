"""The whole history of a pool, read once: what the report, its figures and tables are made from.

Reads the registry, the scores artifacts and the runs' logs; loads no model, computes no metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dylora_moe.build.json_values import as_int
from dylora_moe.build.run_logs import Run, read_runs
from dylora_moe.evaluation.measurements import (
    Notice,
    RouterFit,
    StrategyChange,
    Training,
    read_notices,
    read_router_fits,
    read_strategies,
    read_trainings,
)
from dylora_moe.evaluation.scores import SkillRow, read_scores
from dylora_moe.evaluation.steps import Step, read_steps
from dylora_moe.ports import ArtifactStore, Registry
from dylora_moe.records import BASE_NAME, PoolRevision


@dataclass(frozen=True, slots=True)
class Expert:
    """An expert of the current revision."""

    expert_id: str
    alias: str
    version: int
    skills: tuple[str, ...]
    maturity: float
    state: str
    rank: int | None
    n_bytes: float | None
    parents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Skill:
    """A skill that was ever scored, under its latest name; `expert_id` is None once removed."""

    skill_id: str
    name: str
    expert_id: str | None


@dataclass(frozen=True, slots=True)
class History:
    """A pool's history.

    Attributes:
        meta: the pool's fixed facts as the registry holds them.
        steps: arrivals, imports, removals and rollbacks, in order.
        skills: in order of first appearance: the columns of the matrices.
        scores: a row for each step and a column for each skill; None where it was not scored.
        experts_after: number of experts after each step.
        aliases: expert id to its latest alias, of every expert there ever was.
    """

    name: str
    meta: Mapping[str, Any]
    revision: int
    steps: tuple[Step, ...]
    skills: tuple[Skill, ...]
    scores: tuple[tuple[SkillRow | None, ...], ...]
    experts_after: tuple[int, ...]
    experts: tuple[Expert, ...]
    aliases: Mapping[str, str]
    runs: tuple[Run, ...]
    trainings: tuple[Training, ...]
    router_fits: tuple[RouterFit, ...]
    strategies: tuple[StrategyChange, ...]
    notices: tuple[Notice, ...]

    def alias(self, expert: str) -> str:
        """What people call the expert with this id (or alias); `base` for no expert."""
        return self.aliases.get(expert, expert)

    def skill_name(self, skill: str) -> str:
        """What people call the skill with this id (or name)."""
        return next((found.name for found in self.skills if found.skill_id == skill), skill)

    def step_name(self, number: int | None) -> str:
        if number is None or not 1 <= number <= len(self.steps):
            return ""
        return self.steps[number - 1].name

    @property
    def latest(self) -> tuple[SkillRow | None, ...]:
        """The scores after the last step, one for each skill."""
        return self.scores[-1] if self.scores else ()


def collect(registry: Registry, artifacts: ArtifactStore, root: Path) -> History:
    """Reads everything a report needs.

    Args:
        registry: revisions and events.
        artifacts: opens the scores of the revisions.
        root: the pool's folder, for its name and `runs/*/metrics.jsonl`.

    Raises:
        ArtifactError: a scores file is missing or damaged.
    """
    events, revisions = registry.events(), registry.revisions()
    current = registry.current()
    by_number = {revision.number: revision for revision in revisions}
    told, owners = read_steps(events, revisions)
    steps = tuple(_identified(step, by_number) for step in told)
    scored = _scores_of(artifacts, steps, by_number)
    skills = _skills(scored, current)
    aliases = _aliases(revisions, current)
    trainings = tuple(_trained_by_id(item, steps) for item in read_trainings(events, owners))
    runs = read_runs(root, {step.run_id: (step.number, step.name) for step in steps if step.run_id})
    return History(
        name=root.resolve().name,
        meta=registry.meta(),
        revision=current.number,
        steps=steps,
        skills=skills,
        scores=tuple(_aligned(rows, skills) for rows in scored),
        experts_after=tuple(_n_experts(by_number.get(step.revision)) for step in steps),
        experts=_experts(current, trainings),
        aliases=aliases,
        runs=runs,
        trainings=trainings,
        router_fits=read_router_fits(events, owners),
        strategies=read_strategies(events, owners),
        notices=(*read_notices(events, owners), *_warnings(runs)),
    )


def _identified(step: Step, by_number: Mapping[int, PoolRevision]) -> Step:
    """The step with its expert's id in the place of the alias it had then: aliases move."""
    revision = by_number.get(step.revision)
    before = by_number.get(revision.parent or 0) if revision is not None else None
    for known in (revision, before):
        found = known.expert(step.expert) if known is not None and step.expert else None
        if found is not None:
            return replace(step, expert=found.expert_id)
    return step


def _trained_by_id(training: Training, steps: Sequence[Step]) -> Training:
    step = steps[training.step - 1] if training.step else None
    if step is None or step.expert is None or step.version != training.version:
        return training
    return replace(training, expert=step.expert)


def _warnings(runs: Sequence[Run]) -> tuple[Notice, ...]:
    return tuple(Notice(run.number, "warning", text, "") for run in runs for text in run.warnings)


def _scores_of(
    artifacts: ArtifactStore, steps: Sequence[Step], by_number: Mapping[int, PoolRevision]
) -> list[tuple[SkillRow, ...]]:
    read: dict[str, tuple[SkillRow, ...]] = {}
    found: list[tuple[SkillRow, ...]] = []
    for step in steps:
        revision = by_number.get(step.revision)
        artifact = None if revision is None else revision.scores
        if artifact is None:
            found.append(())
            continue
        if artifact.sha256 not in read:
            read[artifact.sha256] = read_scores(artifacts, artifact)
        found.append(read[artifact.sha256])
    return found


def _skills(scored: Sequence[tuple[SkillRow, ...]], current: PoolRevision) -> tuple[Skill, ...]:
    names: dict[str, str] = {}
    for rows in scored:
        names.update((row.skill_id, row.name) for row in rows)
    homes = {skill.skill_id: skill for skill in current.skills}
    found = []
    for key, name in names.items():
        home = homes.get(key)
        found.append(Skill(key, home.name if home else name, home.expert_id if home else None))
    return tuple(found)


def _aligned(rows: Sequence[SkillRow], skills: Sequence[Skill]) -> tuple[SkillRow | None, ...]:
    found = {row.skill_id: row for row in rows}
    return tuple(found.get(skill.skill_id) for skill in skills)


def _n_experts(revision: PoolRevision | None) -> int:
    return 0 if revision is None else len(revision.experts)


def _aliases(revisions: Sequence[PoolRevision], current: PoolRevision) -> dict[str, str]:
    names = {BASE_NAME: BASE_NAME}
    for revision in (*revisions, current):
        names.update((expert.expert_id, expert.alias) for expert in revision.experts)
    return names


def _experts(current: PoolRevision, trainings: Sequence[Training]) -> tuple[Expert, ...]:
    sizes = {(item.expert, item.version): item.n_bytes for item in trainings}
    return tuple(
        Expert(
            expert_id=expert.expert_id,
            alias=expert.alias,
            version=expert.version,
            skills=tuple(s.name for s in current.skills if s.expert_id == expert.expert_id),
            maturity=float(expert.maturity),
            state=expert.maturity_state,
            rank=as_int(expert.lora_config.get("r")),
            n_bytes=sizes.get((expert.expert_id, expert.version))
            or sizes.get((expert.alias, expert.version)),
            parents=expert.parents,
        )
        for expert in current.experts
    )
