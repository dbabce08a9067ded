"""What the documentation says of the code's rooms, files and names is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests import docs_reading as docs

ARCHITECTURE = docs.ROOT / "docs" / "architecture.md"
PYPROJECT = tomllib.loads((docs.ROOT / "pyproject.toml").read_text("utf-8"))

pages = pytest.mark.parametrize("page", docs.PAGES, ids=lambda page: page.name)


def rooms_on_disk() -> set[str]:
    folders = {file.parent.name for file in docs.PACKAGE.glob("*/__init__.py")}
    modules = {file.stem for file in docs.PACKAGE.glob("*.py")} - {"__init__"}
    return folders | modules


def test_the_rooms_are_those_on_disk_in_the_order_of_the_contract() -> None:
    rows = next(table for table in docs.tables(ARCHITECTURE) if table[0][0] == "room")[1:]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    assert set(named) == rooms_on_disk()
    layers = PYPROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    order = [room.rpartition(".")[2] for layer in layers for room in layer.split(" | ")]
    assert named == order


def test_the_files_named_beside_a_room_are_in_it() -> None:
    rows = next(table for table in docs.tables(ARCHITECTURE) if table[0][0] == "room")[1:]
    for row in rows:
        room = re.findall(r"`(\w+)`", row[0])[0]
        files = re.findall(r"`([\w/]+\.py)`", row[-1])
        assert files, room
        for file in files:
            inside = docs.PACKAGE / room / file
            assert inside.is_file() or (docs.PACKAGE / file).is_file(), f"{room}: {file}"


@pages
def test_every_name_of_the_code_exists(page: Path) -> None:
    rooms = rooms_on_disk()
    for span in docs.spans(page):
        parts = span.removesuffix("()").split(".")
        dotted = len(parts) > 1 and all(part.isidentifier() for part in parts)
        if not dotted or parts[0] not in rooms or parts[1] == "py":
            continue
        found = docs.module_file(parts)
        assert found is not None, f"{page.name}: {span}"
        assert docs.defines(*found), f"{page.name}: {span}"


def test_the_architecture_names_enough_of_the_code_to_find_the_way() -> None:
    rooms = {name for name in rooms_on_disk() if (docs.PACKAGE / name).is_dir()}
    named = {span.split(".")[0] for span in docs.spans(ARCHITECTURE) if span.count(".") >= 2}
    assert named >= rooms
