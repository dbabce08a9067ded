from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from dylora_moe.cli.evaluating import named_files
from dylora_moe.cli.importing import find_adapters
from dylora_moe.errors import ConfigError, DataError, ExpertError, PoolError
from dylora_moe.experts.adapter_files import write_adapter
from dylora_moe.experts.adapter_tensors import key_a, key_b
from dylora_moe.records import ExpertVersion, PoolRevision
from tests.cli.conftest import Cli
from tests.cli.fakes import FakePool, expert


def adapter(folder: Path, *files: str) -> Path:
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", *files):
        (folder / name).write_text("{}", encoding="utf-8")
    return folder


def test_adapters_bring_their_prompts_along(tmp_path: Path) -> None:
    one = adapter(tmp_path / "lib" / "a", "prompts.jsonl")
    two = adapter(tmp_path / "lib" / "b", "prompts.txt")
    found = find_adapters(tmp_path / "lib", ())
    assert [(item.name, item.prompts) for item in found] == [
        ("a", one / "prompts.jsonl"),
        ("b", two / "prompts.txt"),
    ]


def test_prompts_by_name_by_folder_and_by_file(tmp_path: Path) -> None:
    adapter(tmp_path / "lib" / "a")
    adapter(tmp_path / "lib" / "b")
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "a.txt").write_text("x", encoding="utf-8")
    other = tmp_path / "other.jsonl"
    other.write_text("{}", encoding="utf-8")
    found = find_adapters(tmp_path / "lib", [str(folder), f"b={other}"])
    assert [item.prompts for item in found] == [folder / "a.txt", other]
    (single,) = find_adapters(tmp_path / "lib" / "a", [str(other)])
    assert (single.name, single.prompts) == ("a", other)


def test_what_is_missing_is_said_before_anything_is_brought_in(
    tmp_path: Path, cli: Cli, pool: FakePool
) -> None:
    adapter(tmp_path / "lib" / "a", "prompts.txt")
    adapter(tmp_path / "lib" / "b")
    ran = cli("experts", "import", "pool", tmp_path / "lib")
    assert ran.code == 2
    assert "--prompts b=FILE" in ran.err
    assert not pool.calls
    with pytest.raises(DataError, match="no adapter of that name"):
        find_adapters(tmp_path / "lib", [f"c={tmp_path / 'lib/a/prompts.txt'}"])
    with pytest.raises(DataError, match="no such file"):
        find_adapters(tmp_path / "lib", ["b=nowhere.txt"])
    with pytest.raises(ExpertError, match="no PEFT adapter"):
        find_adapters(tmp_path, ())


def real_adapter(folder: Path) -> Path:
    """An adapter that reads whole, with its prompts."""
    folder.mkdir(parents=True)
    config = LoraConfig(r=2, target_modules=["q_proj"])
    at = "model.layers.1.self_attn.q_proj"
    state = {key_a(at): torch.ones(2, 4), key_b(at): torch.ones(4, 2)}
    write_adapter(folder, config, state, None)
    (folder / "prompts.txt").write_text("one\ntwo\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("wrong", ["adapter_model.safetensors", "prompts.txt"])
def test_every_adapter_is_read_before_the_first_is_brought_in(
    wrong: str, tmp_path: Path, cli: Cli, pool: FakePool
) -> None:
    real_adapter(tmp_path / "lib" / "a")
    (real_adapter(tmp_path / "lib" / "b") / wrong).write_bytes(b"\xff")
    ran = cli("experts", "import", "pool", tmp_path / "lib")
    assert ran.code == 2
    assert str(tmp_path / "lib" / "b" / wrong) in ran.err
    assert not pool.calls


def test_of_adapters_all_are_brought_in_or_none(
    tmp_path: Path, cli: Cli, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        real_adapter(tmp_path / "lib" / name)
    passed: list[int] = []

    def third_refused(folder: Path, name: str, prompts: Path) -> ExpertVersion:
        if name == "c":
            raise PoolError("c was not let in")
        pool.revision = replace(pool.revision, number=pool.revision.number + 1)
        return expert(name, 9)

    def back(name: str | None) -> PoolRevision:
        assert name is None
        passed.append(pool.revision.number)
        pool.revision = replace(pool.revision, number=pool.revision.number - 1)
        return pool.revision

    monkeypatch.setattr(pool, "import_expert", third_refused)
    monkeypatch.setattr(pool, "rollback", back)
    ran = cli("experts", "import", "pool", tmp_path / "lib")
    assert (ran.code, ran.err) == (2, "error: c was not let in\n")
    assert (passed, pool.revision.number) == ([3, 2], 1)


def test_import_hands_each_adapter_to_the_pool(tmp_path: Path, cli: Cli, pool: FakePool) -> None:
    folder = real_adapter(tmp_path / "sql")
    document = cli("experts", "import", "pool", folder, "--json").document
    assert pool.called("import") == [
        {"folder": folder, "name": "sql", "prompts": folder / "prompts.txt"}
    ]
    assert document["experts"][0]["alias"] == "sql"


def test_import_refuses_a_name_that_is_taken(tmp_path: Path, cli: Cli, pool: FakePool) -> None:
    folder = real_adapter(tmp_path / "orders")
    ran = cli("experts", "import", "pool", folder)
    assert ran.code == 2
    assert "'orders' already" in ran.err
    assert not pool.calls


@pytest.mark.parametrize("verb", ["show", "remove", "rollback"])
def test_an_unknown_expert_names_those_there_are(verb: str, cli: Cli, pool: FakePool) -> None:
    ran = cli("experts", verb, "pool", "nobody")
    assert (ran.code, ran.err) == (2, "error: no expert 'nobody' in this pool; there are: orders\n")


def test_an_expert_is_found_by_its_id_too(cli: Cli, pool: FakePool) -> None:
    cli("experts", "rename", "pool", "expert_1", "sales")
    assert pool.called("rename") == [{"old": "orders", "new": "sales"}]


def test_rollback_without_a_name_is_the_pool_s(cli: Cli, pool: FakePool) -> None:
    document = cli("experts", "rollback", "pool", "--json").document
    assert pool.called("rollback") == [{"name": None}]
    assert (document["before"], document["revision"], document["experts"]) == (1, 0, [])


def test_promote_puts_a_version_back_by_the_expert_s_name(cli: Cli, pool: FakePool) -> None:
    document = cli("experts", "promote", "pool", "expert_1", "3", "--json").document
    cli("experts", "promote", "pool", "orders", "1", "--instead-of=3")
    assert pool.called("put back") == [
        {"name": "orders", "version": 3, "instead_of": None},
        {"name": "orders", "version": 1, "instead_of": 3},
    ]
    assert (document["before"], document["revision"]) == (1, 2)
    assert cli("experts", "promote", "pool", "orders", "0").code == 2


def test_export_takes_all_or_some(cli: Cli, pool: FakePool) -> None:
    cli("experts", "export", "pool", "out")
    cli("experts", "export", "pool", "out", "--expert", "orders")
    assert [call["name"] for call in pool.called("export")] == [None, "orders"]


def test_eval_names_its_files(tmp_path: Path) -> None:
    (tmp_path / "x=y.jsonl").write_text("", encoding="utf-8")
    found = named_files(["a=b.jsonl", "2-robot.jsonl", str(tmp_path / "x=y.jsonl")])
    assert found == {
        "a": Path("b.jsonl"),
        "robot": Path("2-robot.jsonl"),
        "x=y": tmp_path / "x=y.jsonl",
    }
    with pytest.raises(ConfigError, match="NAME=FILE"):
        named_files(["a/test.txt", "a=other.txt"])


def test_eval_writes_what_is_not_finite_as_null(cli: Cli, pool: FakePool) -> None:
    skills = cli("eval", "pool", "--json").document["skills"]
    assert skills["orders"]["loss"] is None
    assert skills["orders"]["to"] == {"orders": 0.97, "base": 0.03}
