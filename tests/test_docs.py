"""What the documentation says is so: commands, settings, rooms, names, messages and links."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from dylora_moe import config, parsing
from dylora_moe.cli.main import app
from dylora_moe.scoring.checks import CHECKS
from dylora_moe.text.formats import FORMATS
from tests import docs_reading as docs

STREAMS = docs.ROOT / "docs" / "streams.md"
TROUBLES = docs.ROOT / "docs" / "troubleshooting.md"
PYPROJECT = tomllib.loads((docs.ROOT / "pyproject.toml").read_text("utf-8"))
WRITTEN = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "architecture.md", "streams.md",
           "troubleshooting.md", "lab-log.md", "benchmarks.md", "serving.md")  # fmt: skip
SCHEMA: dict[str, Any] = config.StreamSettings.model_json_schema()["$defs"]

pages = pytest.mark.parametrize("page", docs.PAGES, ids=lambda page: page.name)


def test_every_page_is_there() -> None:
    assert {page.name for page in docs.PAGES} >= set(WRITTEN)


# -- links ---------------------------------------------------------------------------------------


@pages
def test_every_relative_link_resolves(page: Path) -> None:
    for link in docs.links(page):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in docs.anchors(target), f"{page.name}: {link}"


def test_the_readme_shows_the_report() -> None:
    assert "docs/images/report.png" in docs.links(docs.ROOT / "README.md")


# -- commands ------------------------------------------------------------------------------------


def command_lines(page: Path) -> list[list[str]]:
    """Words of the `dylora` commands in shell blocks, without the program's name."""
    return [words[1:] for words in docs.shell_lines(page) if words[0].endswith("dylora")]


def resolve(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the first words name, and the words after them."""
    here: Any = get_command(app)
    for index, word in enumerate(words):
        if not isinstance(here, TyperGroup) or word.startswith("-"):
            return here, words[index:]
        assert word in here.commands, f"no command '{word}' in: dylora {shlex.join(words)}"
        here = here.commands[word]
    return here, []


def options_of(command: Any) -> set[str]:
    own = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    return own | {"--help", "-h"}


@pages
def test_every_command_line_parses(page: Path) -> None:
    for words in command_lines(page):
        command, rest = resolve(words)
        if isinstance(command, TyperGroup):
            assert set(rest) <= options_of(command), shlex.join(words)
        elif not {"--help", "-h"} & set(rest):
            command.make_context(command.name, list(rest))
        settings = [rest[i + 1] for i, word in enumerate(rest) if word == "--set"]
        config.learn_settings(settings)


@pages
def test_every_command_named_in_a_sentence_exists(page: Path) -> None:
    for span in docs.spans(page):
        if not re.match(r"dylora( |$)", span):
            continue
        command, rest = resolve(shlex.split(span)[1:])
        for word in rest:
            if word.startswith("-"):
                assert word.partition("=")[0] in options_of(command), f"{page.name}: {span}"


@pages
def test_every_option_named_alone_belongs_to_some_command(page: Path) -> None:
    known = set(options_of(get_command(app)))
    todo: list[Any] = [get_command(app)]
    while todo:
        command = todo.pop()
        known |= options_of(command)
        todo += command.commands.values() if isinstance(command, TyperGroup) else []
    for span in docs.spans(page):
        if re.match(r"--[a-z]", span):
            assert re.split(r"[ =]", span)[0] in known, f"{page.name}: {span}"
            if span.startswith("--set ") and "KEY" not in span:
                config.learn_settings([span.removeprefix("--set ")])


@pages
def test_every_make_target_exists(page: Path) -> None:
    makefile = (docs.ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE))
    spoken = [words[1:] for words in docs.shell_lines(page) if words[0] == "make"]
    spoken += [span.split()[1:] for span in docs.spans(page) if span.startswith("make ")]
    for words in spoken:
        for word in words:
            name, equals, _ = word.partition("=")
            assert name in (variables if equals else targets), f"{page.name}: make {word}"


def test_the_pages_hold_as_many_commands_as_they_should() -> None:
    counted = {page.name: len(command_lines(page)) for page in docs.PAGES}
    assert counted["README.md"] >= 8
    assert counted["troubleshooting.md"] >= 15
    assert counted["streams.md"] >= 2


@pages
def test_every_variable_of_the_environment_is_read(page: Path) -> None:
    texts = set(docs.texts_in_code())
    # The tests of the page are told of a browser by one.
    of_tests = (docs.ROOT / "tests" / "serving" / "browser.py").read_text("utf-8")
    for name in re.findall(r"\bDYLORA_[A-Z]+\b", page.read_text("utf-8")):
        assert name in texts or f'"{name}"' in of_tests, f"{page.name}: {name}"


# -- settings ------------------------------------------------------------------------------------


def flattened(name: str, prefix: str = "") -> dict[str, dict[str, Any]]:
    """Schemas of a settings class's keys by dotted name; phases are taken as one key each."""
    found: dict[str, dict[str, Any]] = {}
    for key, schema in SCHEMA[name]["properties"].items():
        ref = schema.get("$ref", "").rpartition("/")[2]
        if ref and ref != "PhaseSettings":
            found |= flattened(ref, f"{prefix}{key}.")
        elif "PhaseSettings" not in str(schema):
            found[prefix + key] = schema
    return found


def documented(kind: str) -> dict[str, dict[str, str]]:
    """Rows of the tables of `streams.md` whose header has this column, by key."""
    found: dict[str, dict[str, str]] = {}
    for header, *rows in docs.tables(STREAMS):
        if header[0] != "key" or kind not in header:
            continue
        for row in rows:
            key = row[0].strip("`")
            assert key not in found, f"{key} stands twice"
            found[key] = dict(zip(header[1:], row[1:], strict=True))
    return found


def read_value(cell: str) -> Any:
    return yaml.safe_load(cell.strip("`"))


def test_every_setting_is_documented_with_its_default_and_what_it_may_be() -> None:
    rows, schemas = documented("default"), flattened("LearnSettings")
    assert set(rows) == set(schemas)
    defaults = config.LearnSettings().model_dump(mode="json")
    for key, row in rows.items():
        value: Any = defaults
        for part in key.split("."):
            value = value[part]
        assert read_value(row["default"]) == value, key
        assert row["allowed"] == docs.allowed(schemas[key]), key
        assert row["meaning"], key


def test_every_key_of_a_phase_is_documented_with_its_three_defaults() -> None:
    rows, schemas = documented("consolidation"), SCHEMA["PhaseSettings"]["properties"]
    assert set(rows) == set(schemas)
    defaults = config.LearnSettings().model_dump(mode="json")
    for key, row in rows.items():
        for phase in ("seeding", "consolidation", "more_data"):
            assert read_value(row[phase]) == defaults[phase][key], f"{phase}.{key}"
        assert row["allowed"] == docs.allowed(schemas[key]), key
        assert row["meaning"], key


def test_every_key_of_an_arrival_is_documented() -> None:
    rows, schemas = documented("if left out"), SCHEMA["ArrivalSettings"]["properties"]
    assert set(rows) == set(schemas)
    for key, row in rows.items():
        expected = schemas[key].get("default", "required")
        assert read_value(row["if left out"]) == expected, key


def test_every_stream_shown_is_valid() -> None:
    # What `serving.md` shows are a server's settings: tests/serving/http/test_documentation.py.
    pages = [page for page in docs.PAGES if page.name != "serving.md"]
    shown = [yaml.safe_load(f.body) for page in pages for f in docs.fences(page, "yaml")]
    assert shown
    for values in shown:
        parsing.parse(config.StreamSettings, values, "shown")


def test_every_format_and_check_is_documented() -> None:
    named = set(docs.spans(STREAMS))
    assert set(FORMATS) <= named
    assert set(CHECKS) <= named


# -- messages, Python, versions ------------------------------------------------------------------


def test_every_message_quoted_in_troubleshooting_is_one_of_the_code() -> None:
    quoted = [line for fence in docs.fences(TROUBLES, "text") for line in fence.body.splitlines()]
    assert len(quoted) >= 15
    for line in quoted:
        pieces = [piece.strip() for piece in line.split("…")]
        for piece in (each for each in pieces if len(each) > 3):
            assert any(piece in text for text in docs.texts_in_code()), f"{line!r}: {piece!r}"


def test_every_command_in_a_message_has_the_arguments_that_it_needs() -> None:
    seen = 0
    for text in docs.messages_in_code():
        for found in re.finditer(r"\bdylora((?: [a-z]+)+)((?: (?:X|[A-Z]{3,})\b)*)", text):
            words, given = found[1].split(), len(found[2].split())
            if words[0] not in get_command(app).commands:  # type: ignore[attr-defined]
                continue
            while words:
                try:
                    command, rest = resolve(words)
                    break
                except AssertionError:
                    words.pop()
            needed = [one for one in command.params if one.param_type_name == "argument"]
            assert given + len(rest) >= sum(one.required for one in needed), text
            seen += 1
    assert seen >= 8


def test_every_option_in_a_message_belongs_to_some_command() -> None:
    known, todo = {"--no-deps", "--upgrade"}, [get_command(app)]  # pip's
    while todo:
        command: Any = todo.pop()
        known |= options_of(command)
        todo += command.commands.values() if isinstance(command, TyperGroup) else []
    named = {
        option
        for text in docs.messages_in_code()
        for option in re.findall(r"(?<![\w(-])--[a-z][a-z-]*[a-z](?![\w-]*[X:])", text)
    }
    assert {"--drop-long", "--max-length", "--validation"} <= named
    assert named <= known, named - known


def test_nothing_points_at_a_document_that_is_not_here() -> None:
    files = [*docs.PACKAGE.rglob("*.py"), *(docs.ROOT / "benchmarks").rglob("*.py"), *docs.PAGES]
    assert len(files) > 100
    for file in files:
        text = file.read_text("utf-8")
        found = re.search(r"\(design\b|\bthe design's\b|\bDESIGN\b|\.\./shared", text)
        assert found is None, f"{file}: {found}"


@pages
def test_every_python_block_calls_what_the_pool_has(page: Path) -> None:
    methods = docs.members(docs.PACKAGE / "build" / "pool.py", "Pool")
    for variable in ("pool", "Pool"):
        for name, keywords in docs.python_calls(page, variable):
            method = methods.get(name)
            assert isinstance(method, ast.FunctionDef), f"{page.name}: {variable}.{name}"
            arguments = method.args
            known = {one.arg for one in (*arguments.args, *arguments.kwonlyargs)}
            assert arguments.kwarg or set(keywords) <= known, f"{page.name}: {variable}.{name}"


@pytest.mark.parametrize("page", docs.PAGES, ids=lambda page: page.name)
def test_no_place_is_left_open(page: Path) -> None:
    """What is put in by hand at the end is put in: measured results, figures."""
    open_places = re.findall(
        r"\b[A-Z]+_RESULTS\b|<!-- *FIGURES|\b(?:TODO|TBD|FIXME|XXX)\b", page.read_text("utf-8")
    )
    assert open_places == []


def test_the_changelog_has_the_version() -> None:
    version = PYPROJECT["project"]["version"]
    changes = (docs.ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## {re.escape(version)}\b", changes, re.MULTILINE)


def test_the_versions_in_the_readme_are_those_of_the_project() -> None:
    readme = (docs.ROOT / "README.md").read_text("utf-8")
    pinned = (docs.ROOT / "constraints.txt").read_text("utf-8").strip()
    assert pinned in readme
    for package in ("torch", "transformers", "peft"):
        low = next(
            need.partition(">=")[2]
            for need in PYPROJECT["project"]["dependencies"]
            if need.startswith(f"{package}>=")
        )
        assert f"{package} ≥ {low}" in readme
