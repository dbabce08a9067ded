"""A pool that is none: two experts and nothing behind them, to be read while it is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dylora_moe.ports import Run
from dylora_moe.records import Artifact, Event, ExpertVersion, PoolRevision, SkillRecord


def expert(alias: str, number: int, version: int = 1, maturity: float = 0.9) -> ExpertVersion:
    folder = f"experts/expert_{number}/v{version}"
    return ExpertVersion(
        expert_id=f"expert_{number}",
        skill_id=f"skill_{number}",
        alias=alias,
        version=version,
        lora_config={"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]},
        storage_path=folder,
        files=(Artifact(f"{folder}/adapter_model.safetensors", "0" * 64),),
        maturity=maturity,
        created_at="2026-01-02T03:04:05.000+00:00",
    )


def skill(name: str, number: int) -> SkillRecord:
    features = Artifact(f"skills/skill_{number}/features.safetensors", "1" * 64)
    return SkillRecord(f"skill_{number}", name, f"expert_{number}", 1, 40, (), features)


def revision(number: int, *aliases: str) -> PoolRevision:
    return PoolRevision(
        number,
        number - 1 if number else None,
        tuple(expert(alias, i) for i, alias in enumerate(aliases, 1)),
        tuple(skill(alias, i) for i, alias in enumerate(aliases, 1)),
        None,
        None,
        "note",
        "2026-01-02T03:04:05.000+00:00",
    )


@dataclass
class DoubleRegistry:
    """Revisions and events in a list."""

    known: list[PoolRevision]
    told: list[Event] = field(default_factory=list)

    def current(self) -> PoolRevision:
        return self.known[-1]

    def revision(self, number: int) -> PoolRevision:
        return next(each for each in self.known if each.number == number)

    def revisions(self) -> list[PoolRevision]:
        return list(self.known)

    def versions(self, expert_id: str) -> list[ExpertVersion]:
        found = {
            each.version: each
            for known in self.known
            for each in known.experts
            if each.expert_id == expert_id
        }
        return [found[version] for version in sorted(found)]

    def events(self, kind: str | None = None, limit: int | None = None) -> list[Event]:
        found = [event for event in self.told if kind in (None, event.kind)]
        return found if limit is None else found[-limit:]


@dataclass
class DoublePool:
    """A pool to be read: two experts, `letters` and `digits`."""

    registry: DoubleRegistry = field(
        # The first there is: nothing led to it.
        default_factory=lambda: DoubleRegistry(
            [replace(revision(3, "letters", "digits"), parent=None)]
        )
    )
    path: Path = Path("pool")
    meta: Mapping[str, Any] = field(
        default_factory=lambda: {"base": "tiny", "format": "plain", "tap": 2}
    )

    @property
    def revision(self) -> PoolRevision:
        return self.registry.current()

    def experts(self) -> tuple[ExpertVersion, ...]:
        return self.revision.experts

    def events(self, kind: str | None = None) -> list[Event]:
        return self.registry.events(kind)

    def unfinished(self) -> list[Run]:
        """Nobody ever learned into it."""
        return []

    def close(self) -> None:
        """Nothing to give back."""
