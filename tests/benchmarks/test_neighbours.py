"""A new skill beside older experts: every variant begins with the same pool and says what it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import ablations_table
import neighbours
import pytest
import results_page
import workload
from ablations_table import AS_IT_IS, Run
from study import document

from dylora_moe.build.pool import Pool

SKILLS = {"counting": ("shouting", "doubling")}
ANSWERS = {"counting": "{0}!", "shouting": "HEY {0}", "doubling": "{0} {0}"}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, answer in ANSWERS.items():
        folder = tmp_path / "skills" / name
        folder.mkdir(parents=True)
        for part, first in (("train", 0), ("test", 100)):
            lines = [
                json.dumps({"prompt": f"{name} {n}", "completion": answer.format(n)})
                for n in range(first, first + 40)
            ]
            (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr(neighbours, "OLDER", SKILLS)
    monkeypatch.setattr(neighbours, "OLDER_ROWS", 32)
    monkeypatch.setattr(neighbours, "OWN_PROMPTS", 32)
    monkeypatch.setattr(neighbours, "DEFAULT_BASE", str(workload.save_toy(tmp_path / "base")))
    monkeypatch.setattr(neighbours, "PLACE", {"device": "cpu", "dtype": "fp32"})
    # Two quick older experts are not mature by themselves, and only mature ones teach.
    monkeypatch.setattr("dylora_moe.lifecycle.teaching.MATURE_FROM", 0.0)
    yield tmp_path / "skills"
    for kept in (neighbours._empty, neighbours._taught):
        kept.cache_clear()
    neighbours._place.cache_clear()
    neighbours._TEST_ROWS.clear()


def test_variants_learn_in_copies_of_one_pool(data: Path) -> None:
    usual, again, distilled = (
        neighbours.run(data / "counting", name, 32, 8, 0)
        for name in (AS_IT_IS, AS_IT_IS, "distillation 1")
    )
    assert (usual.skill, usual.rows, usual.test) == ("counting", 32, 8)
    assert (usual.loss, usual.routed) == (again.loss, again.routed)
    assert distilled.loss != usual.loss
    assert distilled.tokens == usual.tokens
    assert usual.operations == again.operations > 0
    older = neighbours._taught(data, SKILLS["counting"], 0)
    with Pool.open(older, device="cpu", dtype="fp32") as pool:
        assert [one.alias for one in pool.experts()] == list(SKILLS["counting"])


def test_every_variant_is_a_setting_and_none_is_what_there_is() -> None:
    usual = neighbours.settings_of(AS_IT_IS)
    found = {name: neighbours.settings_of(name) for name in neighbours.VARIANTS}
    for name, settings in found.items():
        assert (settings != usual) == (name != AS_IT_IS), name
    texts = {settings.model_dump_json() for settings in found.values()}
    assert len(texts) == len(neighbours.VARIANTS)


def runs(routed: bool) -> list[Run]:
    usual, other = (2.0, 1.0) if routed else (None, None)
    return [
        Run(AS_IT_IS, "a", 64, 0, 1.0, 0.5, 100, 10.0, 8, usual),
        Run("more", "a", 64, 0, 0.5, 0.5, 100, 20.0, 8, other),
    ]


def test_what_the_router_answers_has_a_row_and_a_column_where_it_was_asked() -> None:
    measures = [row.measure for row in ablations_table.rows(runs(routed=True))]
    assert measures == [
        "held-out loss, more, 64 rows / as it is",
        "routed loss, more, 64 rows / as it is",
    ]
    assert len(ablations_table.rows(runs(routed=False))) == 1
    made = ablations_table.table([asdict(one) for one in runs(routed=True)]).splitlines()
    assert made[0].endswith("| seconds / as it is | routed loss / as it is |")
    assert made[2].endswith("| 2.00 | 0.500 [0.500, 0.500] |")
    without = ablations_table.table([asdict(one) for one in runs(routed=False)])
    assert "routed" not in without


def test_the_page_of_results_has_the_study(tmp_path: Path) -> None:
    text = json.dumps(document(neighbours.STUDY, runs(routed=True)))
    (tmp_path / "neighbours.json").write_text(text, encoding="utf-8")
    body = results_page.body(tmp_path / "page.md", tmp_path)
    assert body.startswith(f"## {neighbours.STUDY.title}")
    assert "| more | 64 |" in body
