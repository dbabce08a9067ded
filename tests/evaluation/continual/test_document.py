"""What is written of a run is whole, small, and what the scoreboard reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dylora_moe.evaluation.continual.detecting import Detected, nearest_pair
from dylora_moe.evaluation.continual.document import document, neighbours, to_markdown, write
from dylora_moe.evaluation.continual.presets import PRESETS
from dylora_moe.records import Interval
from tests.evaluation.continual.test_goals import PERFECT

COMMAND = "dylora bench continual --preset cpu"
FIELDS = {
    "measure", "value", "direction", "must", "aim", "low", "high", "note", "interval",
}  # fmt: skip


@pytest.fixture
def written(tmp_path: Path) -> list[Path]:
    replayed = {
        "detector": "classifier", "stream": "hard", "experts": 3, "true_skills": 3, "again": 0,
        "returned": None, "borders": None, "seconds": 0.1, "skipped": "",
    }  # fmt: skip
    novelty = Detected({"unseen": Interval(0.97, 0.94, 0.99)}, (replayed,))
    found = document(PRESETS["cpu"], PERFECT, COMMAND, novelty)
    return write(found, tmp_path / "results")


def test_every_file_is_there_and_the_page_shows_every_drawing(written: list[Path]) -> None:
    names = [path.name for path in written]
    assert names[:3] == ["cpu.json", "cpu.md", "cpu.png"]
    assert {"cpu-matrices.png", "cpu-visits.png", "cpu-experts.png"} <= set(names)
    page = written[1].read_text(encoding="utf-8")
    for path in written[2:]:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"]({path.name})" in page
    assert COMMAND in page
    assert "| hard | classifier | 3 of 3 |" in page


def test_the_json_holds_rows_of_the_scoreboard_and_no_test_row(written: list[Path]) -> None:
    body: Mapping[str, Any] = json.loads(written[0].read_text(encoding="utf-8"))
    assert [set(row) for row in body["rows"]] == [FIELDS] * len(body["rows"])
    assert len(body["rows"]) == 15
    lacking = [row for row in body["rows"] if row["value"] is None]
    assert [f"{row['measure']} ({row['note']})" for row in lacking] == body["missing"]
    assert "AUROC for single inputs of clinc150 out of scope" in {r["measure"] for r in lacking}
    assert body["checks"]
    assert all(check["holds"] for check in body["checks"])
    assert written[0].stat().st_size < 60_000
    assert "letters-0" not in written[0].read_text(encoding="utf-8")
    arms = {(one["stream"], one["arm"]) for one in body["arms"]}
    assert ("hard", "oracle-bank") in arms
    assert ("blurred", "ours") in arms


def test_the_page_says_each_claim_and_what_is_not_in_the_run() -> None:
    few = [one for one in PERFECT if one.arm in ("ours", "base")]
    page = to_markdown(document(PRESETS["cpu"], few, COMMAND), [])
    assert "| backward transfer, hard switches, points | 0 |" in page
    assert "Not in this run: " in page
    assert "oracle-bank did not run" in page


def test_an_arm_without_figures_draws_what_there_is(tmp_path: Path) -> None:
    once = [one for one in PERFECT if one.arm == "multi-task"]
    names = [path.name for path in write(document(PRESETS["cpu"], once, COMMAND), tmp_path)]
    assert names == ["cpu.json", "cpu.md", "cpu.png"]


def test_the_near_neighbours_are_the_presets_or_else_the_two_that_are_told_apart_worst() -> None:
    preset, novelty = PRESETS["cpu"], Detected(nearest=("a", "b"))
    assert neighbours(preset, novelty) == (("snips", "clinc150"),)
    assert neighbours(replace(preset, skills=("a", "b", "snips")), novelty) == (("a", "b"),)
    assert neighbours(replace(preset, skills=("a", "b", "snips")), None) == ()


def test_the_nearest_pair_is_the_one_whose_rows_lie_together() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 40, 8, generator=draw)
    rows[0] += 9
    rows[1, :, 0] += 4
    rows[2, :, 0] += 5
    rows[3] -= 9
    features = dict(zip("abcd", rows, strict=True))
    assert nearest_pair(features) == ("b", "c")
