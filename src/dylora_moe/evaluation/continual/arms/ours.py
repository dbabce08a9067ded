"""This project's pool: it is given the batches, without names or borders, and nothing else.

Learns through the same front as a person (`Pool.learn_arrivals`), so all that a pool does with data
is in it: verdicts, waiting rows, the gate. Nobody says that a batch is of one skill, so each is
sorted first, as `learn --mixed` does: a batch in which one skill ends and the next begins would
otherwise go to the older one's expert whole. What the pool has learned stays in the arm's folder,
and an interrupted run goes on from there.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dylora_moe.build.pool import Pool
from dylora_moe.build.run_logs import read_runs
from dylora_moe.config import LearnSettings, NoveltySettings
from dylora_moe.errors import DataError
from dylora_moe.evaluation.continual.arms.arm import ArmKind, Setting
from dylora_moe.evaluation.continual.arms.empty_pool import empty_pool
from dylora_moe.evaluation.continual.arms.journal import (
    Arrived,
    arrived,
    name_of,
    true_skills,
)
from dylora_moe.evaluation.continual.arms.routed import (
    Asked,
    Scored,
    neutral_losses,
    parameters_of,
)
from dylora_moe.evaluation.continual.arms.shortening import growth, neutral_of
from dylora_moe.evaluation.continual.results import (
    ArmResult,
    RowResult,
    Stage,
    mean_loss,
)
from dylora_moe.evaluation.continual.streams import STREAMS, Stream
from dylora_moe.evaluation.files import write_whole
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.records import Arrival

POOL, _TOLD = "pool", "arrivals.json"


@dataclass(frozen=True)
class Ours:
    """The arm.

    Attributes:
        novelty: what it has otherwise than the run's settings under `novelty`.
    """

    name: str = "ours"
    title: str = "this project: one pool, no ids, no borders"
    streams: frozenset[str] = frozenset(STREAMS)
    kind: ArmKind = "pool"
    novelty: Mapping[str, Any] = field(default_factory=dict)

    def learning(self, learn: LearnSettings) -> LearnSettings:
        """A run's settings as this arm has them."""
        novelty = NoveltySettings(**(learn.novelty.model_dump() | dict(self.novelty)))
        return learn.model_copy(update={"novelty": novelty})

    def run(self, setting: Setting) -> ArmResult:
        """Learns the stream batch by batch and answers the test rows after each visit."""
        start = time.perf_counter()
        setting = replace(setting, learn=self.learning(setting.learn))
        with self._pool(setting) as pool:
            learning = _Learning(pool, setting)
            stages = learning.stages()
            result = learning.result(stages)
        seconds = learning.earlier + time.perf_counter() - start
        return replace(result, arm=self.name, seconds=seconds)

    def _pool(self, setting: Setting) -> Pool:
        """The pool of the arm's folder: what it has learned so far, or a new one."""
        path = setting.folder / POOL
        if not path.exists():
            empty = empty_pool(setting)
            staged = path.with_name(f".{POOL}")
            shutil.rmtree(staged, ignore_errors=True)
            shutil.copytree(empty, staged)
            staged.replace(path)
        return Pool.open(path, device=setting.device, dtype=setting.dtype)


class _Learning:
    """One pool and how far it is in the stream.

    Attributes:
        earlier: seconds that earlier processes spent on batches learned and stages answered.
    """

    def __init__(self, pool: Pool, setting: Setting) -> None:
        self._pool, self._setting = pool, setting
        # Generated answers are scores for people; nothing is decided by them.
        self._settings = setting.learn.model_copy(update={"generate_scores": 0})
        self._told = [Arrived(**one) for one in _read(setting.folder / _TOLD)]
        self._tests = Asked(pool.live, setting.test_rows)
        self._facts: dict[int, Mapping[str, Any]] = {}
        kept = [_read(path) for path in sorted(setting.folder.glob("stage-*.json"))]
        self.earlier = sum(one.seconds for one in self._told) + sum(one["seconds"] for one in kept)

    def stages(self) -> tuple[Stage, ...]:
        """Learns what is not learned yet; the stages that the setting asks for."""
        setting, found = self._setting, []
        skills = true_skills(setting.stream)
        ends = stage_ends(setting.stream, setting.every_visit)
        for batch, rows in enumerate(setting.stream.batches):
            if batch >= len(self._told):
                self._learn(batch, rows, skills[batch])
            found += [self._stage(after, skill) for end, after, skill in ends if end == batch]
        return tuple(found)

    def result(self, stages: tuple[Stage, ...]) -> ArmResult:
        """All that is to be told of the arm, but for the time it took."""
        setting, live, told = self._setting, self._pool.live, self._told
        last = stages[-1].after
        if last not in self._facts:
            names = _names(true_owners(live, setting.stream))
            self._facts[last] = self._told_of(self._tests.score(names))
        facts = self._facts[last]
        details = {
            **growth(setting.stream, told, facts["owners"]),
            **facts["details"],
            "arrivals": [one.to_json() for one in told],
            "after": {str(after): found for after, found in self._facts.items()},
        }
        return ArmResult(
            arm="ours",
            stream=setting.stream.kind,
            seed=setting.seed,
            stages=stages,
            trained_tokens=sum(one.tokens for one in told),
            seconds=0.0,
            parameters=facts["parameters"],
            parameters_in_use=facts["parameters_in_use"],
            base_loss=facts["base_loss"],
            neutral=neutral_of(facts),
            details=details,
        )

    def _told_of(self, scored: Scored) -> dict[str, Any]:
        """The pool as it is now, with its answers to all test rows, as JSON values."""
        setting, live = self._setting, self._pool.live
        owners = true_owners(live, setting.stream)
        asked = zip(setting.test_rows, scored.none, strict=True)
        neutral = neutral_losses(live, setting.neutral)
        return {
            "parameters": sum(parameters_of(live, expert) for expert in live.versions),
            "parameters_in_use": scored.in_use,
            "base_loss": mean_loss(neutral),
            "neutral": [asdict(row) for row in neutral],
            "owners": _names(owners),
            "details": {
                "experts": {live.ref(expert): dict(rows) for expert, rows in owners.items()},
                "experts_grown": len(live.versions),
                "none": {row.key: share for (_, row), share in asked},
            },
        }

    def _learn(self, batch: int, rows: Sequence[Any], skills: Mapping[str, int]) -> None:
        setting, pool = self._setting, self._pool
        arrival = Arrival(name_of(batch), tuple(rows))
        start = time.perf_counter()
        results = pool.learn_arrivals([arrival], mixed=True, settings=self._settings)
        seconds = time.perf_counter() - start
        tokens = _trained_tokens(pool) - sum(one.tokens for one in self._told)

        def expert_of(alias: str) -> str:
            return pool.live.version(alias).expert_id

        told = arrived(batch, results, pool.registry, skills, tokens, seconds, expert_of)
        self._told.append(told)
        write_whole(
            setting.folder / _TOLD, json.dumps([one.to_json() for one in self._told]) + "\n"
        )
        setting.told(
            f"batch {batch + 1}/{len(setting.stream.batches)}: {self._told[-1].action}; "
            f"{len(pool.live.versions)} experts; "
            f"{self._told[-1].seconds:.0f} s"
        )

    def _stage(self, after: int, skill: str) -> Stage:
        path = self._setting.folder / f"stage-{after:03d}.json"
        kept = _read(path)
        if kept:
            if kept.get("facts"):
                self._facts[after] = kept["facts"]
            return Stage(after, skill, tuple(RowResult(**row) for row in kept["answered"]))
        start = time.perf_counter()
        owners = true_owners(self._pool.live, self._setting.stream)
        asked = self._setting.asked_after(after)
        # Where all rows are asked, a stream might have ended.
        whole = len(asked) == len(self._setting.test_rows)
        scored = self._tests.score(_names(owners), asked, whole=whole)
        if whole:
            self._facts[after] = self._told_of(scored)
        seconds = time.perf_counter() - start
        body = {
            "answered": [asdict(row) for row in scored.rows],
            "seconds": seconds,
            "facts": self._facts.get(after),
        }
        write_whole(path, json.dumps(body) + "\n")
        accuracy = sum(row.score for row in scored.rows) / len(scored.rows)
        self._setting.told(
            f"after visit {after}: {accuracy:.1%} of {len(scored.rows)} test rows; {seconds:.0f} s"
        )
        return Stage(after, skill, scored.rows)


def stage_ends(stream: Stream, every_visit: bool) -> list[tuple[int, int, str]]:
    """(batch, visits learned, skill of the last one) of every stage."""
    visits, last = stream.truth.visits, len(stream.batches) - 1
    if not visits:
        return [(last, 1, "")]
    ends = [
        (stream.batch_of(visit.stop - 1), number, visit.skill)
        for number, visit in enumerate(visits, 1)
    ]
    return ends if every_visit else ends[-1:]


def true_owners(live: LivePool, stream: Stream) -> dict[str, Counter[str]]:
    """The rows that each expert is kept with, by true skill."""
    truth = stream.truth.skill_of
    found: dict[str, Counter[str]] = {expert: Counter() for expert in live.versions}
    for record in live.revision.skills:
        for key in live.keys_of(record.examples + record.validation):
            if key in truth:
                found[record.expert_id][truth[key]] += 1
    return found


def _names(owners: Mapping[str, Counter[str]]) -> dict[str, str]:
    return {expert: max(rows, key=lambda s: rows[s]) for expert, rows in owners.items() if rows}


def _trained_tokens(pool: Pool) -> int:
    return round(sum(run.last("tokens") or 0.0 for run in read_runs(pool.path, {})))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); remove its folder to start it over") from None
