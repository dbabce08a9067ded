from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from dylora_moe.cli import checks, opening
from dylora_moe.cli.checks import Check, check_package, check_python
from dylora_moe.cli.pool_checks import check_files
from dylora_moe.errors import PoolError
from dylora_moe.records import Artifact, PoolRevision, SkillRecord
from tests.cli.conftest import Cli
from tests.cli.fakes import expert


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "check_machine", lambda: iter([Check("python", "ok", "3.11")]))


def pool_of(folder: Path, *bodies: bytes) -> PoolRevision:
    """A revision whose scores and router are these files."""
    found = []
    for number, body in enumerate(bodies):
        (folder / f"f{number}").write_bytes(body)
        found.append(Artifact(f"f{number}", hashlib.sha256(body).hexdigest()))
    return PoolRevision(1, 0, (), (), found[0], found[1], "note")


def inspected(revision: PoolRevision, **facts: object) -> SimpleNamespace:
    known = {
        "meta": {"base": "tiny"}, "schema_version": "0001", "holder": None, "unfinished": (),
        "waiting": 0, "waiting_fault": None,
    }  # fmt: skip
    return SimpleNamespace(revision=revision, **{**known, **facts})


def test_versions_are_held_against_what_is_supported() -> None:
    assert check_package("torch", lambda name: "2.13.0+cpu").state == "ok"
    assert check_package("torch", lambda name: "2.8.0rc1").state == "ok"
    old = check_package("peft", lambda name: "0.9.1")
    assert (old.state, old.remedy) == ("broken", "pip install 'peft>=0.21'")

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    assert check_package("peft", missing).state == "broken"
    assert [check_python((3, minor)).state for minor in (10, 11, 13, 14)] == [
        "broken", "ok", "ok", "broken",
    ]  # fmt: skip


def test_a_whole_pool_is_healthy(
    cli: Cli, healthy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = pool_of(tmp_path, b"router", b"scores")
    monkeypatch.setattr(opening, "inspect_pool", lambda path: inspected(revision))
    ran = cli("doctor", tmp_path, "--json")
    assert ran.code == 0
    names = [check["name"] for check in ran.document["checks"]]
    assert names == ["python", "disk", "pool", "schema", "lock", "files", "waiting", "runs"]
    assert ran.document["healthy"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_found_and_the_exit_code_is_1(
    damage: str, cli: Cli, healthy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = pool_of(tmp_path, b"router", b"scores")
    file = tmp_path / "f1"
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(b"scoret" if damage == "flip" else b"score")
    monkeypatch.setattr(opening, "inspect_pool", lambda path: inspected(revision))
    ran = cli("doctor", tmp_path)
    assert ran.code == 1
    assert "BROKEN" in ran.out
    assert "f1 is" in ran.out
    assert f"dylora experts rollback {tmp_path}" in " ".join(ran.out.split())
    assert check_files(tmp_path, revision, {}).state == "broken"


KINDS = ("adapter", "examples", "validation", "features", "router", "scores", "own")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_held_against_its_hash(kind: str, tmp_path: Path) -> None:
    made = {}
    for name in KINDS:
        (tmp_path / name).write_text(name)
        made[name] = Artifact(name, hashlib.sha256(name.encode()).hexdigest())
    revision = PoolRevision(
        1, 0,
        (replace(expert(), files=(made["adapter"],)),),
        (SkillRecord("skill_1", "a", "expert_1", 1, 9, (made["examples"],), made["features"],
                     (made["validation"],)),),
        made["router"], made["scores"], "note",
    )  # fmt: skip
    meta = {"own": asdict(made["own"])}
    whole = check_files(tmp_path, revision, meta)
    assert whole.state == "ok"
    assert f"in {len(KINDS)}," in whole.fact
    (tmp_path / kind).write_text("other")
    broken = check_files(tmp_path, revision, meta)
    assert (broken.state, broken.fact) == ("broken", f"{kind} is damaged")
    # Every revision needs the base's own prompts: going back would not help.
    assert ("rollback" in broken.remedy) == (kind not in ("own", "adapter"))


@pytest.mark.parametrize(
    ("parents", "steps"),
    [((), ("remove",)), (("expert_9@1",), ("remove",)), (("expert_1@1",), ("rollback", "remove"))],
)
def test_a_damaged_expert_goes_back_to_its_version_before_or_out(
    parents: tuple[str, ...], steps: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "adapter").write_text("other")
    file = Artifact("adapter", hashlib.sha256(b"adapter").hexdigest())
    damaged = replace(expert(), expert_id="expert_1", files=(file,), parents=parents)
    found = check_files(tmp_path, PoolRevision(1, 0, (damaged,), (), None, None, "note"), {})
    told = " or ".join(f"dylora experts {step} {tmp_path} {damaged.alias}," for step in steps)
    assert found.remedy == f"{told} then learn or import it again"


def test_damaged_rows_that_wait_are_broken(
    cli: Cli, healthy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = inspected(pool_of(tmp_path, b"a", b"b"), waiting_fault="waiting/a is damaged")
    monkeypatch.setattr(opening, "inspect_pool", lambda path: found)
    ran = cli("doctor", tmp_path)
    assert ran.code == 1
    assert "waiting/a is damaged" in ran.out


def test_a_holder_and_unfinished_runs_are_notes(
    cli: Cli, healthy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = inspected(
        pool_of(tmp_path, b"a", b"b"), holder="process 7 holds it", unfinished=("run-1",)
    )
    monkeypatch.setattr(opening, "inspect_pool", lambda path: found)
    ran = cli("doctor", tmp_path)
    assert ran.code == 0
    assert "process 7 holds it" in ran.out
    assert "run-1" in ran.out


def test_no_pool_is_broken_with_the_reason(
    cli: Cli, healthy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(path: Path) -> None:
        raise PoolError("no pool there; make one")

    monkeypatch.setattr(opening, "inspect_pool", missing)
    ran = cli("doctor", tmp_path)
    assert ran.code == 1
    assert "no pool there; make one" in ran.out


def test_this_machine_is_looked_at_without_the_network(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    names = {check["name"]: check for check in cli("doctor", "--json").document["checks"]}
    assert set(names) == {
        "python", "torch", "transformers", "peft", "device", "bf16", "kernels", "memory", "base",
        "cache", "hub", "extras", "disk",
    }  # fmt: skip
    assert names["hub"]["state"] == "note"


@pytest.mark.parametrize(
    ("device", "there", "state", "said"),
    [
        ("cpu", True, "ok", "not used on cpu"),
        ("cuda", True, "ok", "are used"),
        ("cuda", False, "note", "not installed"),
    ],
)
def test_it_says_whether_ligers_kernels_are_used(
    device: str, there: bool, state: str, said: str
) -> None:
    check = checks.check_kernels(device, lambda: there)
    assert check.state == state
    assert said in check.fact


def test_a_quantised_pool_says_so(
    cli: Cli, healthy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = {"base": "tiny", "quantize": "int4"}
    found = inspected(pool_of(tmp_path, b"a", b"b"), meta=meta)
    monkeypatch.setattr(opening, "inspect_pool", lambda path: found)
    assert " in int4: " in cli("doctor", tmp_path).out
