"""What `docs/serving.md` and the dashboard say of a server is so."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml
from fastapi import FastAPI

from dylora_moe.parsing import parse
from dylora_moe.serving.http.guard import PUBLIC
from dylora_moe.serving.http.metrics import Metrics
from dylora_moe.serving.served import Served
from dylora_moe.serving.settings import ServeSettings
from tests import docs_reading as docs
from tests.serving.http.test_guard import routes_of

PAGE = docs.ROOT / "docs" / "serving.md"
DASHBOARD = docs.ROOT / "docs" / "grafana-dashboard.json"
GPU = {"dylora_gpu_memory_used_bytes", "dylora_gpu_memory_total_bytes"}
"""Where there is one."""


def rows(first: str) -> list[list[str]]:
    """The rows of the table whose header begins so."""
    return next(table for table in docs.tables(PAGE) if table[0][0] == first)[1:]


def flattened(schema: dict[str, Any], known: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in schema["properties"].items():
        ref = value.get("$ref", "").rpartition("/")[2]
        found |= flattened(known[ref], known, f"{prefix}{key}.") if ref else {prefix + key: value}
    return found


def test_every_setting_is_documented_with_its_default_and_what_it_may_be() -> None:
    schema = ServeSettings.model_json_schema()
    schemas = flattened(schema, schema["$defs"])
    defaults = ServeSettings().model_dump(mode="json")
    documented = {row[0].strip("`"): row[1:] for row in rows("key")}
    assert set(documented) == set(schemas)
    for key, (default, allowed, meaning) in documented.items():
        value: Any = defaults
        for part in key.split("."):
            value = value[part]
        assert yaml.safe_load(default.strip("`")) == value, key
        assert allowed == docs.allowed(schemas[key]), key
        assert meaning, key


def test_the_settings_shown_are_valid() -> None:
    (shown,) = [yaml.safe_load(fence.body) for fence in docs.fences(PAGE, "yaml")]
    assert parse(ServeSettings, shown, "shown").engine.rows == 32


def test_every_route_is_documented_and_whether_it_needs_a_key(app: FastAPI) -> None:
    documented = {row[0].strip("`"): row[2] for row in rows("route")}
    there = {
        f"{method} {re.sub('^/page/.+', '/page/{file}', path)}"
        for method, path in routes_of(app)
        if method != "HEAD"
    }
    public = {*PUBLIC, "/", "/page/{file}"}
    assert set(documented) == there
    for route, needs in documented.items():
        assert needs == ("no" if route.split()[1] in public else "yes"), route


def measured(found: Served) -> dict[str, str]:
    """Every metric of this project with its type."""
    families = list(Metrics(found, 100).registry.collect())
    return {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in families
        if family.name.startswith("dylora_")
    }


def test_every_metric_is_documented_with_its_type(found: Served) -> None:
    documented = {row[0].strip("`"): row[1] for row in rows("metric")}
    there = measured(found)
    assert {name: kind for name, kind in documented.items() if name not in GPU} == there
    assert set(documented) >= GPU


def test_the_dashboard_asks_for_what_is_measured(found: Served) -> None:
    board = json.loads(DASHBOARD.read_text("utf-8"))
    known = set(measured(found)) | GPU
    asked = set()
    for panel in board["panels"]:
        for target in panel["targets"]:
            names = re.findall(r"\b(dylora_\w+|process_\w+)", target["expr"])
            assert names, panel["title"]
            asked |= {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
            assert target["expr"].count("(") == target["expr"].count(")")
    assert asked - {"process_resident_memory_bytes"} <= known
    assert len(asked) >= 18


def test_panels_of_the_dashboard_lie_side_by_side() -> None:
    board = json.loads(DASHBOARD.read_text("utf-8"))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_every_code_of_an_error_in_the_code_is_documented() -> None:
    named = {span for row in rows("status") for span in re.findall(r"`(\w+)`", row[1])}
    sources = "\n".join(
        file.read_text("utf-8") for file in sorted((docs.PACKAGE / "serving" / "http").glob("*.py"))
    )
    for code in named - {"request_timeout"}:
        assert f'"{code}"' in sources, code
