"""Runs the arms of a preset one after the other and keeps what each handed back.

Each arm on each stream under each seed is a file of its own, with the fingerprint of all that
decided it: the same command again runs what is missing and nothing else. Knows folders and arms;
computes no figure.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dylora_moe import __version__
from dylora_moe.config import LearnSettings
from dylora_moe.errors import ConfigError
from dylora_moe.evaluation.continual.arms.arm import Arm, Setting
from dylora_moe.evaluation.continual.arms.ours import Ours
from dylora_moe.evaluation.continual.arms.shortening import shortened
from dylora_moe.evaluation.continual.plan import (
    HARD,
    RETURNING,
    Job,
    Material,
    Plan,
    jobs,
    read_material,
    require_alike,
    require_enough,
    require_own_seeds,
)
from dylora_moe.evaluation.continual.presets import TEMPLATED
from dylora_moe.evaluation.continual.results import (
    FORMAT,
    ArmResult,
    read_result,
    write_result,
)
from dylora_moe.evaluation.continual.streams import Stream
from dylora_moe.foundation.base import Base, load_base
from dylora_moe.records import Example
from dylora_moe.text.template import PromptFormat, encode_all

ARMS_FOLDER, WORK_FOLDER = "arms", "work"
OURS = "ours"
FMT = PromptFormat("plain")
"""How every arm writes prompts."""


def run(
    plan: Plan, arms: Mapping[str, Arm], told: Callable[[str], None] = lambda _: None
) -> list[ArmResult]:
    """Runs every job whose result is not there yet.

    Args:
        plan: what and where.
        arms: by name.
        told: is told of every step in one line.

    Returns:
        All results, in the order of `jobs`.

    Raises:
        ConfigError: an arm that there is not, visits too small for the pool to cluster, settings
            that no arm or the pool alone would go by, or an arm that is to have as many experts as
            the pool grew where the pool does not run before it.
        DataError: a folder without what the preset needs.
        DyLoRAError: whatever a base, a row or a training says; what was done before is kept.
    """
    wanted = [job for job in jobs(plan.preset) if _suits(job, arms)]
    require_own_seeds(plan)
    kinds = {arms[job.arm].kind for job in wanted}
    if "pool" in kinds:
        require_enough(plan)
    if kinds & {"trained", "sized"}:
        require_alike(plan)
    _require_size(wanted, arms)
    material: dict[tuple[int, bool], Material] = {}
    ground: Ground | None = None
    found: dict[Job, ArmResult] = {}
    folders: dict[Job, Path] = {}
    for number, job in enumerate(wanted, 1):
        place = (job.seed, job.stream.endswith(TEMPLATED))
        if place not in material:
            read = read_material(plan, *place)
            ground = ground or Ground(plan)
            material[place] = replace(read, neutral=ground.fitting(read.neutral))
        here, ours = material[place], found.get(Job(job.stream, OURS, job.seed))
        assert ground is not None
        mark = ground.fingerprint(job, arms[job.arm], here, ours)
        folders[job] = plan.out / WORK_FOLDER / f"{job.name}-{mark[:10]}"
        path = plan.out / ARMS_FOLDER / f"{job.name}.json"
        tell = partial(say, told, f"[{number}/{len(wanted)}] {job.name}")
        result = read_result(path, mark)
        if result is not None:
            tell("is there")
        else:
            result = _shortened(job, arms[job.arm], found, here.streams[job.stream])
            if result is None:
                began = time.perf_counter()
                setting = setting_of(plan, job, here, folders[job], tell)
                setting = replace(
                    setting,
                    ours_tokens=None if ours is None else ours.trained_tokens,
                    ours_experts=_grown(ours),
                    ours_folder=_learned(folders.get(Job(job.stream, OURS, job.seed)), job),
                )
                result = replace(arms[job.arm].run(setting), stream=job.stream)
                tell(f"done in {time.perf_counter() - began:.0f} s")
            write_result(path, result, mark)
        found[job] = result
    return list(found.values())


def _suits(job: Job, arms: Mapping[str, Arm]) -> bool:
    if job.arm not in arms:
        raise ConfigError(f"no arm '{job.arm}'; choose of {', '.join(arms)}")
    return job.stream.removesuffix(TEMPLATED) in arms[job.arm].streams


def _require_size(wanted: Sequence[Job], arms: Mapping[str, Arm]) -> None:
    before: set[Job] = set()
    for job in wanted:
        before.add(job)
        if arms[job.arm].kind == "sized" and Job(job.stream, OURS, job.seed) not in before:
            raise ConfigError(
                f"{job.arm} has as many experts as {OURS} grew on {job.stream}, which does not run "
                f"before it; give --arms {OURS},{job.arm}"
            )


def setting_of(
    plan: Plan,
    job: Job,
    material: Material,
    folder: Path,
    tell: Callable[[str], None],
) -> Setting:
    """What a job's arm is given.

    Args:
        plan: of the run.
        job: the arm on its stream.
        material: of the job's seed.
        folder: of the arm alone; made here.
        tell: is told of each step.
    """
    learn = plan.learn
    phase = learn.consolidation
    return Setting(
        skills=material.skills,
        stream=material.streams[job.stream],
        seed=job.seed,
        epochs=phase.epochs,
        rank=learn.expert.rank,
        alpha=learn.expert.alpha,
        learning_rate=phase.learning_rate,
        batch_rows=phase.batch_size,
        targets=learn.expert.targets,
        learn=learn.model_copy(update={"seed": job.seed}),
        base=partial(load_base, plan.base, device=plan.device, dtype=plan.dtype),
        base_name=plan.base,
        fmt=FMT,
        neutral=material.neutral,
        folder=_made(folder),
        # What lies there is known by all that decided it, so streams and seeds may share it too.
        shared=_made(plan.out / WORK_FOLDER / "shared"),
        told=tell,
        own_prompts=plan.own_prompts,
        every_visit=plan.preset.answers_each_visit(job.stream),
        device=plan.device,
        dtype=plan.dtype,
    )


class Ground:
    """The base that all stand on, as far as it decides: what tells it, and how long rows may be.

    Args:
        plan: of the run.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        base: Base = load_base(plan.base, device=plan.device, dtype=plan.dtype)
        self._name = f"{base.fingerprint} {base.dtype} {base.device.type}"
        self._tokenizer, self._limit = base.tokenizer, base.context_length

    def fitting(self, rows: Sequence[Example]) -> tuple[Example, ...]:
        """The rows that the base has room for."""
        _, longer = encode_all(rows, self._tokenizer, FMT, self._limit, drop_long=True)
        left_out = {id(row) for row in longer}
        return tuple(row for row in rows if id(row) not in left_out)

    def fingerprint(self, job: Job, arm: Arm, material: Material, ours: ArmResult | None) -> str:
        """Of all that decides a job.

        Args:
            job: the arm on its stream.
            arm: the same.
            material: of the job's seed.
            ours: the pool's result on that stream, which other arms take figures from.
        """
        stream, learn = material.streams[job.stream], self._plan.learn
        facts: dict[str, Any] = {
            "arm": job.arm,
            "stream": job.stream,
            "seed": job.seed,
            "learn": _learning(arm.learning(learn) if isinstance(arm, Ours) else learn),
            "batches": [[_whole(row) for row in batch] for batch in stream.batches],
            "tests": [[one.name, *(_whole(row) for row in one.test)] for one in material.skills],
            "neutral": [row.key for row in material.neutral],
            "own": self._plan.own_prompts,
            "every_visit": self._plan.preset.answers_each_visit(job.stream),
        }
        if arm.kind in ("trained", "sized"):
            facts["tokens"] = None if ours is None else ours.trained_tokens
        if arm.kind == "sized":
            facts["experts"] = _grown(ours)
        return self.mark(facts)

    def mark(self, facts: Mapping[str, Any]) -> str:
        """The hash of facts, the base and this version among them."""
        every = {"format": FORMAT, "version": __version__, "base": self._name, **facts}
        return hashlib.sha256(json.dumps(every, sort_keys=True).encode()).hexdigest()


def _learning(learn: LearnSettings) -> dict[str, Any]:
    """How the pool learns; rows to validate on by what is in their files, not by their names."""
    facts: dict[str, Any] = learn.model_dump(mode="json", exclude={"report_to", "seed"})
    facts["evaluation"] = {name: _content(path) for name, path in learn.evaluation.items()}
    return facts


def _content(path: Path) -> str | None:
    """None where there is no such file, which whoever reads it says."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _whole(row: Example) -> list[Any]:
    """A row with how its answer is scored, which is no part of its key."""
    return [row.key, row.check, *row.tests]


def _grown(ours: ArmResult | None) -> int | None:
    """How many experts the pool has at the end of a stream; None where it did not run."""
    grown: int | None = None if ours is None else ours.details.get("experts_grown")
    return grown


def _shortened(
    job: Job, arm: Arm, found: Mapping[Job, ArmResult], stream: Stream
) -> ArmResult | None:
    """A pool on hard switches, read off the same on the stream in which a skill returns: that one
    begins with the very same batches. None where it did not run, or its batches are cut
    otherwise."""
    longer = found.get(Job(job.stream.replace(HARD, RETURNING), job.arm, job.seed))
    if arm.kind != "pool" or longer is None or not job.stream.startswith(HARD):
        return None
    return shortened(longer, stream, job.stream)


def _learned(folder: Path | None, job: Job) -> Path | None:
    """The folder of ours for another arm, where it is there: not where its result was read off
    another stream's."""
    return folder if folder is not None and folder.exists() and job.arm != OURS else None


def say(told: Callable[[str], None], who: str, what: str) -> None:
    """Tells of a step with the name of what it belongs to."""
    told(f"{who}: {what}")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
