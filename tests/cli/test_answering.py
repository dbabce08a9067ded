from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from dylora_moe.errors import DataError
from dylora_moe.text.prompts import read_prompts
from tests.cli.conftest import Cli
from tests.cli.fakes import FakePool


def test_an_answer_is_printed_as_it_is(cli: Cli, pool: FakePool) -> None:
    long = "[bold]x[/bold] " + "y" * 300
    assert cli("generate", "pool", long).out == f"answer to {long}\n"


def test_explain_adds_a_line(cli: Cli, pool: FakePool) -> None:
    assert cli("generate", "pool", "a", "--explain").out.splitlines() == [
        "answer to a",
        "[orders v1 · orders 0.97 · none 0.02]",
    ]


def test_options_reach_the_pool(cli: Cli, pool: FakePool) -> None:
    cli(
        "generate", "pool", "a", "--expert", "base", "--max-new-tokens", 7, "--temperature", 0.3,
        "--top-p", 0.9, "--top-k", 40, "--seed", 1, "--stop", "A", "--stop", "B",
    )  # fmt: skip
    (asked,) = pool.called("generate")
    assert asked == {
        "prompts": ["a"], "expert": "base", "max_new_tokens": 7, "temperature": 0.3, "top_p": 0.9,
        "top_k": 40, "seed": 1, "stop": ("A", "B"),
    }  # fmt: skip


@pytest.mark.parametrize("typed", [("generate", "pool", "a"), ("chat", "pool"), ("init", "pool")])
@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused_at_once(
    typed: tuple[str, ...], seed: int, cli: Cli, pool: FakePool
) -> None:
    ran = cli(*typed, "--seed", seed)
    assert ran.code == 2
    assert "--seed" in ran.err
    assert not pool.calls


def test_a_dash_reads_stdin_and_a_file_gives_many(
    cli: Cli, pool: FakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\nlines\n"))
    cli("generate", "pool", "-")
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\ntwo\n", encoding="utf-8")
    document = cli("generate", "pool", "--file", file, "--json").document
    assert [call["prompts"] for call in pool.called("generate")] == [["two\nlines"], ["one", "two"]]
    assert [answer["prompt"] for answer in document["answers"]] == ["one", "two"]
    assert document["answers"][0]["weights"] == {"orders": 0.97}


@pytest.mark.parametrize("typed", [[], ["a", "--file", "f"], ["  "]])
def test_exactly_one_source_of_prompts(typed: list[str], cli: Cli, pool: FakePool) -> None:
    assert cli("generate", "pool", *typed).code == 2
    assert not pool.calls


def test_prompts_of_every_kind_of_row(tmp_path: Path) -> None:
    rows = [
        "bare",
        {"prompt": "p", "completion": "left out"},
        {"instruction": "do", "input": "this"},
        {"messages": [{"role": "user", "content": "m"}, {"role": "assistant", "content": "no"}]},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert read_prompts(file) == ["bare", "p", "do\nthis", "m"]


@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        ("a.txt", b" \n", "no prompts"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.jsonl", b'"x"\n{', ":2: corrupt JSON"),
        ("a.jsonl", b"[1]", ":1: a row must be"),
        pytest.param("a.jsonl", b'"x"\n' + b"[" * 200_000, ":2: the JSON is nested", id="deep"),
        ("a.jsonl", b'{"b": 1}', ":1: unknown columns"),
        ("a.jsonl", b'{"prompt": " "}', ":1: the prompt is empty"),
    ],
)
def test_a_bad_file_of_prompts_is_one_line(
    name: str, body: bytes, told: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(body)
    with pytest.raises(DataError, match=told):
        read_prompts(file)
    with pytest.raises(DataError, match="no such file"):
        read_prompts(tmp_path / "missing.txt")
