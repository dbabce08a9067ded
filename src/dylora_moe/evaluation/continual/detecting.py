"""What novelty tests make of a run's rows: each detector replayed on its streams, and the screen of
single inputs.

All of it rests on features of the rows, which are taken once, under a pool without experts; what
came of them is a file beside the arms', under a hash of all that decided it. Knows plans and
features; trains nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.build.pool import Pool
from dylora_moe.evaluation.continual.arms.empty_pool import empty_pool
from dylora_moe.evaluation.continual.features import row_features
from dylora_moe.evaluation.continual.plan import Job, Material, Plan, read_material
from dylora_moe.evaluation.continual.presets import TEMPLATED
from dylora_moe.evaluation.continual.replay import replay_all
from dylora_moe.evaluation.continual.runner import WORK_FOLDER, Ground, say, setting_of
from dylora_moe.evaluation.continual.unseen import unseen_auroc
from dylora_moe.evaluation.files import write_whole
from dylora_moe.lifecycle.answering import prompt_features
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.recipe import Representation
from dylora_moe.records import Interval
from dylora_moe.skills.separability import separability

_NAME = "detectors"
_ROWS = 128
"""Of each skill, to find the pair that is nearest."""
MOST_OUT_OF_SCOPE = 500
"""Prompts beside a skill that are scored, picked by the seed."""


@dataclass(frozen=True)
class Detected:
    """What was found.

    Attributes:
        screening: AUROC of single inputs by what they are, of streams with templates with the
            ending of their names.
        replayed: each detector on each stream, as JSON values.
        unseen: AUROC by skill, as JSON values.
        nearest: the two skills that are told apart worst; none where nothing was measured.
    """

    screening: Mapping[str, Interval] = field(default_factory=dict)
    replayed: tuple[Mapping[str, Any], ...] = ()
    unseen: Mapping[str, Any] = field(default_factory=dict)
    nearest: tuple[str, ...] = ()


def detected(plan: Plan, told: Callable[[str], None] = lambda _: None) -> Detected:
    """Everything for the first seed of a preset, with templates and without where it has both.

    Args:
        plan: of the run.
        told: is told of each step in one line.

    Raises:
        DataError: a folder without what the preset needs.
    """
    seed, ground = plan.preset.seeds[0], Ground(plan)
    screening: dict[str, Interval] = {}
    replayed: list[Mapping[str, Any]] = []
    unseen: dict[str, Any] = {}
    nearest: tuple[str, ...] = ()
    for end in ("", TEMPLATED):
        names = [name for name in plan.preset.streams if name.endswith(TEMPLATED) == bool(end)]
        if not names:
            continue
        material = read_material(plan, seed, bool(end))
        found = _kept(plan, ground, material, Job(f"{_NAME}{end}", _NAME, seed), told)
        for name, one in found["screening"].items():
            screening[name + end] = Interval(**one)
        replayed += found["replayed"]
        unseen["with templates" if end else "without templates"] = found["unseen"]
        nearest = nearest or tuple(found["nearest"])
    return Detected(screening, tuple(replayed), unseen, nearest)


def _kept(
    plan: Plan, ground: Ground, material: Material, job: Job, told: Callable[[str], None]
) -> dict[str, Any]:
    """What the file says, or what is computed and written to it."""
    mark = ground.mark(
        {
            "job": job.name,
            "own": plan.own_prompts,
            "streams": {
                name: [[row.key for row in batch] for batch in stream.batches]
                for name, stream in material.streams.items()
            },
            "tests": [[row.key for row in skill.test] for skill in material.skills],
            "beside": [hashlib.sha256(repr(s.out_of_scope).encode()).hexdigest()
                       for s in material.skills],
        }
    )  # fmt: skip
    path = plan.out / f"{job.stream}-s{job.seed}.json"
    tell = partial(say, told, f"{job.stream}-s{job.seed}")
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if kept["fingerprint"] == mark:
            tell("is there")
            return kept
    except (OSError, ValueError, KeyError, TypeError):
        pass
    stream = next(iter(material.streams))
    folder = plan.out / WORK_FOLDER / job.name
    setting = setting_of(plan, Job(stream, _NAME, job.seed), material, folder, tell)
    with Pool.open(empty_pool(setting), device=plan.device, dtype=plan.dtype) as pool:
        found = _computed(pool.live, material, job.seed, tell)
    write_whole(path, json.dumps({"fingerprint": mark, **found}) + "\n")
    return found


def _computed(
    live: LivePool, material: Material, seed: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    streams = material.streams
    rows = {row.key: row for one in streams.values() for batch in one.batches for row in batch}
    tell(f"features of {len(rows)} rows")
    places = {key: place for place, key in enumerate(rows)}
    features = row_features(live, tuple(rows.values()))
    own = live.own.float().cpu()
    replayed: list[dict[str, Any]] = []
    for name, stream in streams.items():
        chosen = torch.tensor([places[key] for key in stream.truth.keys])
        here: dict[Representation, Tensor] = {kind: f[chosen] for kind, f in features.items()}
        found = replay_all(stream, here, own, seed=seed)
        replayed += [one.document() | {"stream": name} for one in found]
        tell(f"{len(found)} detectors on {name}")
    of_skill = {
        skill.name: [places[row.key] for row in skill.train if row.key in places]
        for skill in material.skills
    }
    by_skill = {name: features["tap"][chosen] for name, chosen in of_skill.items()}
    screened = unseen_auroc(
        by_skill,
        {
            skill.name: prompt_features(live, [row.turns[:-1] for row in skill.test])
            for skill in material.skills
        },
        own,
        out_of_scope={
            skill.name: prompt_features(live, skill.out_of_scope[:MOST_OUT_OF_SCOPE])
            for skill in material.skills
            if skill.out_of_scope
        },
        seed=seed,
    )
    intervals = {
        name: {"value": one.value, "low": one.low, "high": one.high}
        for name, one in screened.intervals.items()
    }
    return {
        "screening": intervals,
        "replayed": replayed,
        "unseen": screened.document(),
        "nearest": nearest_pair(by_skill),
    }


def nearest_pair(features: Mapping[str, Float[Tensor, "_ d"]]) -> tuple[str, ...]:
    """The two skills whose rows a classifier tells apart worst; the first of equals."""
    told = {
        (one, other): separability(features[one][:_ROWS], features[other][:_ROWS]).value
        for one, other in combinations(features, 2)
    }
    return min(told, key=lambda pair: told[pair])
