from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from dylora_moe.cli.output import command, plain
from dylora_moe.errors import DataError, LearningInterruptedError, PoolLockedError
from tests.cli.conftest import Cli
from tests.cli.fakes import FakePool, OddError, expert

Typed = Callable[[Path], list[object]]

# Every command that goes through a pool and prints a result; `rows` is a data file.
COMMANDS: dict[str, Typed] = {
    "init": lambda rows: ["init", "pool"],
    "plan": lambda rows: ["plan", "pool", rows],
    "learn": lambda rows: ["learn", "pool", rows],
    "eval": lambda rows: ["eval", "pool", rows],
    "generate": lambda rows: ["generate", "pool", "hello", "--explain"],
    "experts list": lambda rows: ["experts", "list", "pool"],
    "experts show": lambda rows: ["experts", "show", "pool", "orders"],
    "experts export": lambda rows: ["experts", "export", "pool", "out"],
    "experts rename": lambda rows: ["experts", "rename", "pool", "orders", "sales"],
    "experts rollback": lambda rows: ["experts", "rollback", "pool"],
    "experts remove": lambda rows: ["experts", "remove", "pool", "orders"],
    "report": lambda rows: ["report", "pool"],
}

ASKS_THE_POOL = ("plan", "learn", "eval", "generate", "experts export", "experts rollback")


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_one_document_and_nothing_else(
    name: str, cli: Cli, pool: FakePool, rows: Path
) -> None:
    ran = cli(*COMMANDS[name](rows), "--json")
    assert ran.code == 0, ran.err
    assert isinstance(ran.document, dict)
    if pool.calls:
        assert pool.noise in ran.err


@pytest.mark.parametrize("name", COMMANDS)
def test_without_json_there_is_text_and_no_library_noise(
    name: str, cli: Cli, pool: FakePool, rows: Path
) -> None:
    ran = cli(*COMMANDS[name](rows))
    assert ran.code == 0, ran.err
    assert ran.out.strip()
    assert pool.noise not in ran.out


@pytest.mark.parametrize("name", ASKS_THE_POOL)
def test_an_error_is_one_line_exit_2_and_a_document(
    name: str, cli: Cli, pool: FakePool, rows: Path
) -> None:
    pool.raises = OddError("the fact\nits cause; the remedy")
    ran = cli(*COMMANDS[name](rows), "--json")
    assert ran.code == 2
    assert ran.err.splitlines()[-1] == "error: the fact its cause; the remedy"
    assert ran.document == {
        "error": {
            "type": "OddError",
            "message": "the fact its cause; the remedy",
            "exit_code": 2,
        }
    }
    assert pool.closed


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("f:3: bad"), 2, "error: f:3: bad"),
        (PoolLockedError("held"), 2, "error: held"),
        (LearningInterruptedError("interrupted: kept"), 130, "interrupted: kept"),
        (KeyboardInterrupt(), 130, "interrupted: the pool is as it was"),
        (
            PermissionError(13, "Permission denied", "f"),
            2,
            "error: f: permission denied; check the path and its rights",
        ),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, line: str, cli: Cli, pool: FakePool, rows: Path
) -> None:
    pool.raises = error
    ran = cli("learn", "pool", rows)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.splitlines()[-1] == line


def test_the_unexpected_is_one_line_that_says_how_to_see_more(
    cli: Cli, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.raises, pool.noise = ZeroDivisionError("division"), ""
    monkeypatch.delenv("DYLORA_DEBUG", raising=False)
    ran = cli("generate", "pool", "hello")
    assert ran.code == 1
    assert len(ran.err.strip().splitlines()) == 1
    assert "ZeroDivisionError: division" in ran.err
    assert "DYLORA_DEBUG=1" in ran.err
    monkeypatch.setenv("DYLORA_DEBUG", "1")
    assert "Traceback" in cli("generate", "pool", "hello").err


def test_a_reader_that_went_away_is_quiet(cli: Cli, pool: FakePool) -> None:
    pool.raises, pool.noise = BrokenPipeError(32, "Broken pipe"), ""
    ran = cli("generate", "pool", "hello", "--json")
    assert (ran.code, ran.out, ran.err.strip()) == (141, "", "")


def test_a_second_document_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    def twice() -> None:
        with command(as_json=True) as output:
            output.show({"a": 1}, lambda console: None)
            output.show({"b": 2}, lambda console: None)

    with pytest.raises(typer.Exit):
        twice()
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"a": 1}
    assert "one JSON document" in captured.err


def test_stdout_is_the_person_s_again_after_a_command() -> None:
    before = sys.stdout
    with command(as_json=True):
        assert sys.stdout is sys.stderr
    assert sys.stdout is before


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (float("nan"), None),
        (float("inf"), None),
        (Path("a/b"), "a/b"),
        ({"a": (1, 2.5)}, {"a": [1, 2.5]}),
        (replace(expert(), files=()), None),
    ],
)
def test_plain_makes_json_values(value: Any, told: Any) -> None:
    found = plain(value)
    json.dumps(found, allow_nan=False)
    if told is not None:
        assert found == told


def test_plain_refuses_what_is_no_value() -> None:
    with pytest.raises(TypeError, match="object"):
        plain(object())
