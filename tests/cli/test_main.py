from __future__ import annotations

import inspect
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from dylora_moe import __version__
from dylora_moe.build.pool import Pool
from dylora_moe.cli.main import app
from dylora_moe.cli.pools import init
from tests.cli.conftest import Cli

COMMANDS = {
    "init", "plan", "learn", "eval", "generate", "chat", "report", "doctor",
    "experts list", "experts show", "experts import", "experts export", "experts rename",
    "experts rollback", "experts promote", "experts remove", "data preview", "data sample",
    "bench continual", "tune", "serve",
    "inbox list", "inbox show", "inbox export", "inbox confirm", "inbox drop",
}  # fmt: skip

HEAVY = ("torch", "transformers", "peft", "matplotlib", "sklearn", "datasets", "sqlalchemy")


def paths(command: object = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group by the words that call it."""
    here = get_command(app) if command is None else command
    yield path
    if isinstance(here, TyperGroup):
        for name, inner in here.commands.items():
            yield from paths(inner, (*path, name))


def test_the_commands_are_those_of_the_manual() -> None:
    groups = {(), ("experts",), ("data",), ("bench",), ("inbox",)}
    assert {" ".join(path) for path in paths() if path not in groups} == COMMANDS


def test_every_help_renders_and_loads_no_model_library() -> None:
    script = (
        "import sys, json\n"
        "from dylora_moe.cli.main import run\n"
        "for path in json.loads(sys.argv[1]):\n"
        "    assert run([*path, '--help']) == 0, path\n"
        "loaded = [name for name in json.loads(sys.argv[2]) if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    every = [list(path) for path in paths()]
    asked = [sys.executable, "-c", script, json.dumps(every), json.dumps(HEAVY)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == len(every) == len(COMMANDS) + 5


def test_help_takes_no_longer_than_a_moment() -> None:
    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    found = []
    for _ in range(3):
        before = spent()
        subprocess.run(
            [sys.executable, "-m", "dylora_moe.cli.main", "learn", "--help"],
            capture_output=True,
            check=True,
        )
        found.append(spent() - before)
    # Time of the processor, the best of three: the wall's depends on what else the machine does,
    # and a core that is shared takes half as long again (0.45 s on one machine, 0.7 on another).
    assert min(found) < 1.5


def test_init_s_defaults_are_the_library_s() -> None:
    typed = inspect.signature(init).parameters
    given = inspect.signature(Pool.create).parameters
    same = (
        "base", "system", "tap", "targets", "device", "dtype", "seed", "own_prompts", "database",
    )  # fmt: skip
    assert [typed[name].default for name in same] == [given[name].default for name in same]
    assert typed["fmt"].default == given["format"].default


def test_version_is_the_package_s(cli: Cli) -> None:
    ran = cli("--version")
    assert (ran.code, ran.out) == (0, f"dylora {__version__}\n")


@pytest.mark.parametrize(
    ("typed", "fact", "path"),
    [
        (["lern"], "'lern'", "dylora"),
        (["plan", "--nope"], "--nope", "dylora plan"),
        (["experts", "show", "p"], "NAME", "dylora experts show"),
        (["generate", "p", "--top-k", "many"], "--top-k", "dylora generate"),
    ],
)
def test_a_usage_error_is_one_line_that_names_the_help(
    cli: Cli, typed: list[str], fact: str, path: str
) -> None:
    ran = cli(*typed)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("error: ")
    assert fact in ran.err
    assert ran.err.endswith(f"See {path} --help\n")


def test_a_usage_error_with_json_is_a_document_too(cli: Cli) -> None:
    ran = cli("learn", "pool", "--json")
    assert ran.code == 2
    assert ran.document["error"]["type"] == "UsageError"


def test_a_group_alone_prints_its_help_and_no_error(cli: Cli) -> None:
    ran = cli("experts")
    assert ran.code == 2
    assert "Usage: dylora experts" in ran.out
    assert ran.err == ""


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m dylora_moe.cli.main --help | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert done.stderr == ""
