"""What a run of the bench consists of: its plan, its jobs, and the rows they learn.

Knows presets and folders of skills; runs nothing.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dylora_moe.build.making import OWN_PROMPTS
from dylora_moe.config import LearnSettings
from dylora_moe.errors import ConfigError, DataError
from dylora_moe.evaluation.continual.data import SkillRows, read_skills
from dylora_moe.evaluation.continual.neutral import neutral_rows
from dylora_moe.evaluation.continual.presets import TEMPLATED, Preset
from dylora_moe.evaluation.continual.streams import STREAMS, Stream
from dylora_moe.evaluation.continual.templates import instructed, templates_of
from dylora_moe.records import Example

HARD, RETURNING = "hard", "returning"


@dataclass(frozen=True)
class Plan:
    """What is run, and where.

    Attributes:
        preset: sizes, streams and arms.
        data: folder of skills.
        out: folder of the preset: `arms/` holds the results, `work/` what they are made with.
        learn: how the pool learns; every other arm trains by its figures too.
        base: name of the base.
        device, dtype: of the base.
        own_prompts: how many the base writes by itself.
    """

    preset: Preset
    data: Path
    out: Path
    learn: LearnSettings
    base: str
    device: str | None = None
    dtype: str | None = None
    own_prompts: int = OWN_PROMPTS


@dataclass(frozen=True)
class Job:
    """One arm on one stream under one seed."""

    stream: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.stream}-{self.arm}-s{self.seed}"


@dataclass(frozen=True)
class Material:
    """The rows of a seed, the streams made of them by their names, and text of no skill."""

    skills: tuple[SkillRows, ...]
    streams: Mapping[str, Stream]
    neutral: tuple[Example, ...]


def jobs(preset: Preset) -> list[Job]:
    """Every job in the order in which they run."""
    return [
        Job(stream, arm, seed)
        for seed in preset.seeds
        for stream, arms in preset.arms.items()
        for arm in arms
    ]


def require_enough(plan: Plan) -> None:
    """Raises ConfigError where a visit's rows can never become a skill of the pool, which sorts
    them by clusters."""
    rows, least = plan.preset.rows, plan.learn.novelty.min_cluster
    if rows < least:
        raise ConfigError(
            f"a visit has {rows} rows, and a cluster of new ones becomes a skill from {least} on; "
            f"give more --rows, or --set novelty.min_cluster={rows // 2}"
        )


def require_own_seeds(plan: Plan) -> None:
    """Raises ConfigError where a seed is among the settings: every job sets its own."""
    if "seed" in plan.learn.model_fields_set:
        seed = plan.learn.seed
        raise ConfigError(
            f"seed={seed} would do nothing: rows, order and training go by --seed; give "
            f"--seed {seed} instead of --set seed={seed}"
        )


def require_alike(plan: Plan) -> None:
    """Raises ConfigError where the pool would train by rules that the other arms have not: their
    adapters keep their rank, and all of their blocks learn to the end."""
    expert = plan.learn.expert
    rules = {
        "expert.max_rank": expert.max_rank is not None and expert.max_rank > expert.rank,
        "expert.freeze_below": expert.freeze_below > 0,
    }
    own = [name for name, there in rules.items() if there]
    if own:
        raise ConfigError(
            f"{' and '.join(own)} would change the pool alone, and no other arm would be "
            "comparable; leave it out, or name pools alone: --arms ours,base"
        )


def read_material(plan: Plan, seed: int, templated: bool) -> Material:
    """The rows of a seed and every stream of the preset that is made of them.

    The first skill has the rows of two visits where there are as many, since it may return; its
    first visit has the same rows in every stream.
    """
    preset = plan.preset
    names = list(skill_names(plan))
    if seed:
        random.Random(f"{seed}:order").shuffle(names)
    read = partial(read_skills, plan.data, test=preset.test_rows, seed=seed)
    skills = list(read(train=preset.rows, names=names))
    try:
        (skills[0],) = read(train=2 * preset.rows, names=names[:1], at_least=1)
    except DataError:
        if any(stream.removesuffix(TEMPLATED) == RETURNING for stream in preset.streams):
            raise
    if templated:
        skills = [
            instructed(skill, templates_of(skill.name, plan.data / skill.name), seed=seed)
            for skill in skills
        ]
    return Material(
        tuple(skills),
        {
            name: STREAMS[name.removesuffix(TEMPLATED)](
                skills, rows=preset.rows, batch=preset.batch, seed=seed
            )
            for name in preset.streams
            if name.endswith(TEMPLATED) == templated
        },
        neutral_rows(plan.data, names, rows=preset.test_rows),
    )


def skill_names(plan: Plan) -> tuple[str, ...]:
    """The preset's skills; all of the folder's where it lacks one and the person named none."""
    there = {path.parent.name for path in plan.data.glob("*/train.jsonl")}
    if plan.preset.or_all and there and not there >= set(plan.preset.skills):
        return tuple(sorted(there))
    return plan.preset.skills
