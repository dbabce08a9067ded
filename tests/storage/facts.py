"""Small records that the tests of this room store."""

from __future__ import annotations

from dylora_moe.records import (
    Artifact,
    Event,
    Example,
    ExpertVersion,
    PoolRevision,
    SkillRecord,
    Turn,
    pair,
)

META = {"base": "tiny", "tap": 2, "system": None, "targets": ["q_proj", "v_proj"], "seed": 7}


def expert(number: int = 1, version: int = 1, alias: str = "", maturity: float = 0.0):
    folder = f"experts/expert_{number}/v{version}"
    return ExpertVersion(
        expert_id=f"expert_{number}",
        skill_id=f"skill_{number}",
        alias=alias or f"name-{number}",
        version=version,
        lora_config={"r": 8, "lora_alpha": 16.0, "target_modules": ["q_proj"], "bias": None},
        storage_path=folder,
        files=(
            Artifact(f"{folder}/adapter_model.safetensors", "aa" * 32),
            Artifact(f"{folder}/adapter_config.json", "bb" * 32),
        ),
        maturity=maturity,
        parents=("expert_9@3",),
        history={"seed": {"losses": [3.5, 1.25, float("inf")], "steps": 40}, "note": None},
    )


def skill(number: int = 1) -> SkillRecord:
    return SkillRecord(
        skill_id=f"skill_{number}",
        name=f"thing {number}",
        expert_id=f"expert_{number}",
        version=1,
        count=64,
        examples=(Artifact(f"skills/skill_{number}/x.jsonl", "cc" * 32),),
        features=Artifact(f"skills/skill_{number}/f.safetensors", "dd" * 32),
        validation=(Artifact(f"skills/skill_{number}/v.jsonl", "ff" * 32),),
    )


def revision(parent: int | None = 0, *experts: ExpertVersion, note: str = "") -> PoolRevision:
    experts = experts or (expert(1),)
    return PoolRevision(
        number=-1,
        parent=parent,
        experts=experts,
        skills=tuple(skill(int(each.expert_id.rpartition("_")[2])) for each in experts),
        router=Artifact("router/r.safetensors", "ee" * 32),
        scores=None,
        note=note,
    )


def event(kind: str = "decision", **numbers: object) -> Event:
    return Event(kind, numbers, message=f"a {kind}", run_id="run-1")


def examples(count: int = 3, tag: str = "row") -> list[Example]:
    rows = [pair(f"{tag} {n}?", f"answer {n}") for n in range(count - 1)]
    odd = (
        Turn("system", "be brief"),
        Turn("user", f"{tag}\nzeile\u2028zwei \U0001f600 ü"),
        Turn("assistant", "a\u2028b\n"),
    )
    return [*rows, Example(odd, check="tests", tests=("assert f(1) == 2",))]
