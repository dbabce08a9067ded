"""A pool without a model: answers from memory, writes down what it is asked, and is noisy on stdout
as libraries are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dylora_moe.errors import DyLoRAError
from dylora_moe.lifecycle.results import Answer, Cost, LearnResult, Plan
from dylora_moe.records import (
    Artifact,
    ExpertVersion,
    Interval,
    PoolRevision,
    SkillRecord,
    SkillScore,
    Turn,
    Verdict,
)

NOVEL = Verdict("novel", None, None, (), "the pool is empty")
KNOWN = Verdict(
    "known", Interval(0.52, 0.41, 0.6), Interval(0.02, 0.0, 0.1), (("skill_1", 0.52),), "the same"
)


def expert(alias: str = "orders", number: int = 1, version: int = 1) -> ExpertVersion:
    return ExpertVersion(
        expert_id=f"expert_{number}",
        skill_id=f"skill_{number}",
        alias=alias,
        version=version,
        lora_config={"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
        storage_path=f"experts/expert_{number}/v{version}",
        files=(
            Artifact(f"experts/expert_{number}/v{version}/adapter_model.safetensors", "0" * 64),
        ),
        maturity=0.9,
        history={"trainable_parameters": 1234, "best_loss": 0.1, "phases": [{"name": "seeding"}]},
    )


def skill(name: str = "orders", number: int = 1) -> SkillRecord:
    features = Artifact(f"skills/skill_{number}/features.safetensors", "1" * 64)
    return SkillRecord(f"skill_{number}", name, f"expert_{number}", 1, 40, (), features)


def revision(number: int = 1, *aliases: str) -> PoolRevision:
    experts = tuple(expert(alias, i) for i, alias in enumerate(aliases or ("orders",), 1))
    skills = tuple(skill(alias, i) for i, alias in enumerate(aliases or ("orders",), 1))
    return PoolRevision(number, number - 1, experts, skills, None, None, "note")


@dataclass
class FakeRun:
    id: str = "run-7"

    def state(self) -> dict[str, Any]:
        return {"arrival": "orders"}


@dataclass
class FakeRegistry:
    pool: FakePool

    def versions(self, expert_id: str) -> list[ExpertVersion]:
        return [found for found in self.pool.revision.experts if found.expert_id == expert_id]


@dataclass(frozen=True)
class Evaluated:
    loss: float
    accuracy: float | None
    rows: int
    to: Mapping[str, float]


class FakeStream:
    """Pieces of an answer, and the answer after them."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def __iter__(self) -> Iterator[str]:
        yield from (word + " " for word in self.answer.text.split())


@dataclass
class FakePool:
    path: Path
    revision: PoolRevision = field(default_factory=revision)
    raises: BaseException | None = None
    noise: str = "library noise"
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    meta: dict[str, Any] = field(
        default_factory=lambda: {"base": "tiny", "format": "plain", "tap": 2, "seed": 0}
    )
    runs: list[FakeRun] = field(default_factory=list)
    closed: bool = False

    @property
    def registry(self) -> FakeRegistry:
        return FakeRegistry(self)

    def __enter__(self) -> FakePool:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True

    def called(self, name: str) -> list[dict[str, Any]]:
        return [options for found, options in self.calls if found == name]

    def _call(self, name: str, /, **options: Any) -> None:
        print(self.noise)
        self.calls.append((name, options))
        if self.raises is not None:
            raise self.raises

    def plan_arrivals(self, arrivals: Sequence[Any], **options: Any) -> list[Plan]:
        self._call("plan", arrivals=arrivals, **options)
        for arrival in arrivals:
            options["watch"].verdict(arrival.name, NOVEL)
        cost = Cost(1000, 12.0, 5000, 20000)
        return [
            Plan(a.name, len(a.examples), 99, NOVEL, 3.0, {"orders": 2.5}, cost) for a in arrivals
        ]

    def check_arrivals(self, incoming: Sequence[Any], **options: Any) -> None:
        assert incoming
        assert options["settings"] is not None

    def learn_arrivals(self, arrivals: Sequence[Any], **options: Any) -> list[LearnResult]:
        self._call("learn", arrivals=arrivals, **options)
        watch, results = options["watch"], []
        for arrival in arrivals:
            watch.stage("observe", arrival.name)
            watch.verdict(arrival.name, NOVEL)
            watch.progress(1, 4, {"loss": 0.5})
            watch.warning("a loss rises")
            scores = {"orders": SkillScore(0.1, 0.95, 10)}
            result = LearnResult(
                arrival.name, NOVEL, "created", "orders", 1, "orders", scores, 1, "run-1", 3.0
            )
            watch.result(result)
            results.append(result)
        return results

    def generate(self, prompts: Sequence[str], **options: Any) -> list[Answer]:
        self._call("generate", prompts=prompts, **options)
        return [_answer(prompt) for prompt in prompts]

    def stream(self, turns: Sequence[Turn], **options: Any) -> FakeStream:
        self._call("stream", turns=list(turns), **options)
        return FakeStream(_answer(turns[-1].content, options["expert"]))

    def evaluate(self, files: Mapping[str, Path] | None, **options: Any) -> dict[str, Evaluated]:
        self._call("evaluate", files=files, **options)
        return {"orders": Evaluated(float("nan"), None, 10, {"orders": 0.97, "base": 0.03})}

    def import_expert(self, folder: Path, name: str, prompts: Path) -> ExpertVersion:
        self._call("import", folder=folder, name=name, prompts=prompts)
        return expert(name, 9)

    def export(self, name: str | None, folder: Path) -> None:
        self._call("export", name=name, folder=folder)

    def rename(self, old: str, new: str) -> PoolRevision:
        self._call("rename", old=old, new=new)
        self.revision = revision(2, new)
        return self.revision

    def rollback(self, name: str | None) -> PoolRevision:
        self._call("rollback", name=name)
        return replace(self.revision, number=0, experts=(), skills=())

    def put_back(self, name: str, version: int, instead_of: int | None = None) -> PoolRevision:
        self._call("put back", name=name, version=version, instead_of=instead_of)
        return replace(self.revision, number=self.revision.number + 1)

    def remove(self, name: str) -> PoolRevision:
        self._call("remove", name=name)
        return replace(self.revision, number=2, experts=(), skills=())

    def experts(self) -> tuple[ExpertVersion, ...]:
        return self.revision.experts

    def unfinished(self) -> list[FakeRun]:
        return self.runs


class OddError(DyLoRAError):
    """Raised where a test needs an error of the tree."""


def _answer(prompt: str, pinned: str | None = None) -> Answer:
    name = pinned or "orders"
    version = None if name == "base" else 1
    return Answer(f"answer to {prompt}", name, version, {name: 0.97}, 0.02, 3)
