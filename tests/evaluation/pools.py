"""Pools that never were: registry, scores and logs with known numbers, as learning leaves them."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dylora_moe.errors import ArtifactError
from dylora_moe.records import Artifact, Event, ExpertVersion, PoolRevision, SkillRecord

NOTHING = Artifact("none", "0" * 64)


@dataclass
class MemoryRegistry:
    """The reading half of the registry, in memory."""

    facts: dict[str, Any] = field(default_factory=dict)
    all_revisions: list[PoolRevision] = field(
        default_factory=lambda: [PoolRevision(0, None, (), (), None, None, "init")]
    )
    all_events: list[Event] = field(default_factory=list)
    pointer: int = 0

    def meta(self) -> dict[str, Any]:
        return self.facts

    def current(self) -> PoolRevision:
        return self.all_revisions[self.pointer]

    def revision(self, number: int) -> PoolRevision:
        return self.all_revisions[number]

    def revisions(self) -> list[PoolRevision]:
        return list(self.all_revisions)

    def commit(self, revision: PoolRevision, events: Sequence[Event] = ()) -> PoolRevision:
        placed = replace(revision, number=len(self.all_revisions), parent=self.pointer)
        self.all_revisions.append(placed)
        self.pointer = placed.number
        self.record(*events)
        return placed

    def move_to(self, number: int, event: Event) -> PoolRevision:
        self.pointer = number
        self.record(event)
        return self.current()

    def versions(self, expert_id: str) -> list[ExpertVersion]:
        return [e for r in self.all_revisions for e in r.experts if e.expert_id == expert_id]

    def next_expert_id(self) -> str:
        raise NotImplementedError

    def next_version(self, expert_id: str) -> int:
        raise NotImplementedError

    def record(self, *events: Event) -> None:
        self.all_events.extend(events)

    def events(self, kind: str | None = None, limit: int | None = None) -> list[Event]:
        found = [event for event in self.all_events if kind in (None, event.kind)]
        return found if limit is None else found[-limit:]


@dataclass(frozen=True)
class FolderArtifacts:
    """Files below a folder, opened after checking their hash."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder

    def put_bytes(self, path: str, body: bytes) -> Artifact:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(body)
        return Artifact(path, hashlib.sha256(body).hexdigest())

    @contextmanager
    def stage(self) -> Iterator[Path]:
        raise NotImplementedError
        yield self.folder

    def put_folder(self, path: str, staged: Path) -> tuple[Artifact, ...]:
        raise NotImplementedError

    def open(self, artifact: Artifact) -> Path:
        target = self.folder / artifact.path
        if hashlib.sha256(target.read_bytes()).hexdigest() != artifact.sha256:
            raise ArtifactError(f"{artifact.path}: does not match its hash")
        return target


@dataclass
class PoolWriter:
    """Writes a pool's history step by step, in the shape in which learning writes it."""

    root: Path
    registry: MemoryRegistry = field(default_factory=MemoryRegistry)
    experts: list[ExpertVersion] = field(default_factory=list)
    skills: list[SkillRecord] = field(default_factory=list)
    n_arrivals: int = 0

    def __post_init__(self) -> None:
        self.artifacts = FolderArtifacts(self.root)
        self.registry.facts.update(base="smollm2-135m", tap=8, format="plain", seed=0)

    def arrive(
        self,
        name: str,
        verdict: str,
        action: str,
        skill: str,
        accuracies: Mapping[str, float | None],
        losses: Mapping[str, float] | None = None,
        to: Mapping[str, Mapping[str, float]] | None = None,
        rows: int = 256,
        separability: tuple[float, float, float] | None = None,
        fit: tuple[float, float, float] | None = None,
        train: bool | None = None,
    ) -> None:
        """One arrival; accuracies, losses and routing (by alias) are those after it, by skill."""
        self.n_arrivals += 1
        run_id = f"run-{self.n_arrivals:03d}"
        numbers: dict[str, Any] = {
            "arrival": name, "rows": rows, "train_rows": rows - 38, "validation_rows": 38,
            "tokens": rows * 61, "verdict": verdict, "reason": f"{verdict}: as measured",
            "separability": _interval(separability), "fit": _interval(fit),
            "nearest": [[self.skills[0].skill_id, 0.9]] if self.skills else [],
            "nearest_losses": {}, "base_loss": 3.1, "seconds": 4.5, "detector": "classifier",
            "similarity": {} if separability is None else {
                "cosine-maximum": 0.8 + 0.15 * (1 - separability[0]),
                "cosine-median": 0.75 + 0.15 * (1 - separability[0]),
                "entropy": 1.4 * separability[0] - 0.6,
            },
        }  # fmt: skip
        self.registry.record(Event("arrival", numbers, numbers["reason"]))
        if action in ("waiting", "rejected"):
            self.registry.record(
                Event(action, {"arrival": name, "rows": rows}, f"{action} for a reason")
            )
            return
        if action == "unfinished":
            return
        expert = self._grow(skill, action)
        if train if train is not None else action in ("created", "new version"):
            self._train(run_id, name, expert)
        self._promote(run_id, name, action, skill, expert, accuracies, losses or {}, to or {})

    def _grow(self, skill: str, action: str) -> ExpertVersion:
        if action == "created":
            number = len(self.skills)
            expert = ExpertVersion(
                f"expert_{number}", f"skill_{number}", skill, 1, {"r": 8, "lora_alpha": 16},
                f"experts/expert_{number}/v1", (NOTHING,), 0.91,
            )  # fmt: skip
            self.experts.append(expert)
            self.skills.append(
                SkillRecord(f"skill_{number}", skill, expert.expert_id, 1, 218, (), NOTHING)
            )
            return expert
        found = next(s for s in self.skills if s.name == skill)
        place = next(i for i, e in enumerate(self.experts) if e.expert_id == found.expert_id)
        if action == "new version":
            old = self.experts[place]
            self.experts[place] = replace(
                old, version=old.version + 1, maturity=0.95, parents=(old.ref,)
            )
        return self.experts[place]

    def _train(self, run_id: str, name: str, expert: ExpertVersion) -> None:
        write_log(self.root / "runs" / run_id, name, expert.expert_id, seed=self.n_arrivals)
        numbers = {
            "expert": expert.alias, "version": expert.version,
            "phases": [{"name": "seeding", "steps": 16}, {"name": "consolidation", "steps": 80}],
            "steps": 96, "tokens": 41234,
            "seconds": 33.5, "best_loss": 0.25, "flops": 3.2e13,
            "peak_memory_bytes": 1.9e9, "tokens_per_second": 640.0, "padding_fraction": 0.041,
            "trainable_parameters": 1_790_976, "trainable_share": 0.0131, "bytes": 7_180_000,
        }  # fmt: skip
        self.registry.record(Event("trained", numbers, "", run_id))

    def _promote(
        self,
        run_id: str,
        name: str,
        action: str,
        skill: str,
        expert: ExpertVersion,
        accuracies: Mapping[str, float | None],
        losses: Mapping[str, float],
        to: Mapping[str, Mapping[str, float]],
    ) -> None:
        ids = {e.alias: e.expert_id for e in self.experts} | {"base": "base"}
        body: dict[str, Any] = {"arrival": name, "skills": {}}
        for record in self.skills:
            if record.name not in accuracies:
                continue
            shares = to.get(record.name, {record.name: 0.99, "base": 0.01})
            loss = losses.get(record.name, 0.3)
            body["skills"][record.skill_id] = {
                "name": record.name, "loss": loss, "accuracy": accuracies[record.name],
                "rows": 38,
                "scores": [["key", {}, 9.0, 30, score] for score in [0.9] * 32 + [None] * 6],
                "pinned_loss": loss * 0.98,
                "to": {ids[alias]: share for alias, share in shares.items()},
            }  # fmt: skip
        number = len(self.registry.all_revisions)
        scores = self.artifacts.put_bytes(f"scores/{number}.json", json.dumps(body).encode())
        older = {s.name: 0.3 for s in self.skills if s.name != skill}
        events = (
            Event("router", {
                "classes": len(self.skills) + 1, "none_threshold": 0.62, "own_to_none": 0.004,
                "foreign_to_none": 0.98, "fit_seconds": 0.21, "accuracy_after": 0.973,
                "temperature": 1.4,
            }, "", run_id),
            Event("gate", {
                "promoted": True, "tolerance": 0.02, "before": older,
                "after": {key: loss * 1.002 for key, loss in older.items()}, "rows_rescored": 3,
            }, "", run_id),
            Event("promoted", {
                "revision": number, "action": action, "expert": expert.alias,
                "version": expert.version, "skill": skill, "arrival": name, "seconds": 41.5,
            }, "", run_id),
        )  # fmt: skip
        revision = PoolRevision(
            0, None, tuple(self.experts), tuple(self.skills), None, scores, name
        )
        self.registry.commit(revision, events)


def write_log(folder: Path, arrival: str, expert: str, seed: int) -> None:
    """A run's `metrics.jsonl` of two phases whose numbers fall as losses fall."""
    chance = random.Random(seed)
    folder.mkdir(parents=True)
    edges = [0, 32, 64, 96, 128, 160, 192, 224, 256]
    lines = [
        json.dumps({
            "time": 1000.0 * seed, "step": 0, "phase": "seeding", "padding_fraction": 0.04,
            "trainable_share": 0.0131, f"expert_bytes/{expert}": 7_180_000,
            "packed_sequence_length_histogram": {
                "edges": edges, "counts": [0, 1, 0, 2, 3, 6, 11, 24],
            },
        })
    ]  # fmt: skip
    for step in range(2, 98, 2):
        phase = "seeding" if step <= 16 else "consolidation"
        decay = math.exp(-step / 22)
        line: dict[str, Any] = {
            "time": 1000.0 * seed + step, "phase": phase, "step": step, "epoch": step / 24,
            "loss": 0.2 + 2.6 * decay * (0.9 + 0.2 * chance.random()),
            "grad_norm/router": 0.05 + 0.4 * decay * chance.random(),
            f"grad_norm/{expert}": 0.3 + 1.8 * decay * (0.5 + chance.random()),
            f"expert_usage/{expert}": 0.97 - 0.4 * decay, "expert_usage/base": 0.03 + 0.1 * decay,
            "routing_entropy": 0.05 + 0.9 * decay, "balance_loss": 1.0 + 0.6 * decay,
            "tokens_per_second": 600 + 60 * chance.random(),
            "padding_fraction": 0.03 + 0.03 * chance.random(), "total_flos": 3.3e11 * step,
            "peak_memory_bytes": 1.7e9 + 1e6 * step, "trainable_share": 0.0131,
        }  # fmt: skip
        if step % 16 == 0:
            line[f"eval_{arrival}_loss"] = 0.25 + 2.4 * decay
            line["eval_rehearsal_loss"] = 0.4 + 0.1 * decay
        lines.append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _interval(ends: tuple[float, float, float] | None) -> dict[str, float] | None:
    return None if ends is None else dict(zip(("value", "low", "high"), ends, strict=True))


def empty_pool(root: Path) -> PoolWriter:
    root.mkdir(parents=True, exist_ok=True)
    return PoolWriter(root)


def small_pool(root: Path, first: str = "sums", second: str = "colours") -> PoolWriter:
    """Two skills and a return, with accuracies that are easy to check by hand."""
    pool = empty_pool(root)
    pool.arrive("a", "novel", "created", first, {first: 0.90}, {first: 0.40})
    pool.arrive(
        "b", "novel", "created", second, {first: 0.88, second: 0.70}, {first: 0.41, second: 0.50},
        separability=(0.97, 0.94, 0.99), fit=(0.93, 0.88, 0.97),
    )  # fmt: skip
    pool.arrive(
        "c", "known", "unfinished", second, {}, separability=(0.55, 0.47, 0.63),
        fit=(0.05, -0.02, 0.11),
    )  # fmt: skip
    return pool


def long_pool(root: Path) -> PoolWriter:
    """Eight arrivals of six skills, as in the stream of real data."""
    pool = empty_pool(root)
    names = [
        "snips",
        "cmudict",
        "wikisql",
        "scan",
        "snips-other",
        "clinc150",
        "nl2bash",
        "cmudict-2",
    ]
    final = {"snips": 0.912, "cmudict": 0.573, "wikisql": 0.884, "scan": 0.981, "clinc150": 0.846,
             "nl2bash": 0.418}  # fmt: skip
    loss = {"snips": 0.254, "cmudict": 1.709, "wikisql": 0.256, "scan": 0.127, "clinc150": 1.096,
            "nl2bash": 1.928}  # fmt: skip
    known: list[str] = []
    for i, name in enumerate(names):
        skill = {"snips-other": "snips", "cmudict-2": "cmudict"}.get(name, name)
        returns = skill in known
        if not returns:
            known.append(skill)
        drift = 0.001 * i
        to = {s: {s: 0.985, "base": 0.005, known[0]: 0.01} if s != known[0]
              else {s: 0.995, "base": 0.005} for s in known}  # fmt: skip
        if "clinc150" in known:
            to["snips"] = {"snips": 0.953, "clinc150": 0.042, "base": 0.005}
            to["clinc150"] = {"clinc150": 0.931, "snips": 0.063, "base": 0.006}
        auc = (
            None
            if i == 0
            else (0.58, 0.49, 0.66)
            if returns
            else (0.99 - 0.012 * i, 0.95 - 0.02 * i, 0.998)
        )
        fit = (
            None
            if i == 0
            else (0.04, -0.03, 0.1)
            if returns
            else (0.95 - 0.03 * i, 0.85 - 0.03 * i, 1.01)
        )
        pool.arrive(
            name, "known" if returns else "novel", "new version" if returns else "created", skill,
            {s: final[s] - (drift if s == "snips" else 0) for s in known},
            {s: loss[s] * (1 + 2 * drift) for s in known}, to, separability=auc, fit=fit,
        )  # fmt: skip
    pool.registry.record(
        Event("warning", {"what": "the loss rose for 40 steps"}, "", "run-007", "2026-01-01T10:00")
    )
    pool.registry.record(Event("strategy", {"dense_share_before": 1.0, "dense_share_after": 0.08}))
    return pool
