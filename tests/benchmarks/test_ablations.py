"""Ablations: pairs are of the same skill and seed, and the page says what the result files say."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import ablations
import ablations_table as made
import page
import pytest
import results_page
import study

from dylora_moe.tuning.space import with_values
from tests import docs_reading as docs

PAGE = docs.ROOT / "docs" / "results.md"


def run(variant: str, skill: str, loss: float, seed: int = 0, rows: int = 64) -> made.Run:
    return made.Run(variant, skill, rows, seed, loss, loss / 10, 100, 2 * loss)


RUNS = [
    run(made.AS_IT_IS, "a", 1.0),
    run(made.AS_IT_IS, "b", 2.0),
    run("more", "a", 0.5),
    run("more", "b", 4.0),
    # Nothing by default is beside these.
    run("more", "a", 9.0, seed=1),
    run("more", "a", 9.0, rows=32),
]


def test_a_variant_is_compared_with_the_same_skill_and_seed() -> None:
    (found,) = made.compared(RUNS)
    assert [(a.loss, b.loss) for a, b in found.pairs] == [(0.5, 1.0), (4.0, 2.0)]
    assert found.loss[0] == pytest.approx(1.0)
    assert found.loss[1] < 0.01
    assert found.loss[2] > 100
    assert found.right[0] == pytest.approx(100 * (-0.05 + 0.2) / 2)
    assert found.tokens == 1.0


def test_a_single_pair_has_no_interval_but_itself() -> None:
    (found,) = made.compared([RUNS[0], RUNS[2]])
    assert found.loss == pytest.approx((0.5, 0.5, 0.5))


def test_the_table_has_each_skill_s_ratio() -> None:
    lines = made.table([asdict(one) for one in RUNS]).splitlines()
    assert lines[0].startswith("| variant | rows | loss / as it is | a | b |")
    assert "| 0.500 | 2.000 |" in lines[2]


def test_what_was_run_is_not_run_again() -> None:
    todo = list(study.missing(RUNS, [made.AS_IT_IS, "more"], ["a", "b"], rows=64, seeds=2))
    assert todo == [(made.AS_IT_IS, "a", 1), (made.AS_IT_IS, "b", 1), ("more", "b", 1)]


def test_every_variant_is_a_setting_and_none_is_what_there_is() -> None:
    for name, variant in ablations.VARIANTS.items():
        changed = with_values(ablations.START, variant.values) != ablations.START
        assert (changed or variant.tap is not None) == (name != made.AS_IT_IS), name


def test_a_run_s_page_is_found_a_level_lower_with_its_drawings(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "continual"
    folder.mkdir(parents=True)
    (folder / "cpu.md").write_text("# Title\n\n## Part\n\n![drawn](cpu.png)\n")
    body = results_page.body(tmp_path / "docs" / "page.md", tmp_path / "results")
    assert body == "## Title\n\n### Part\n\n![drawn](../results/continual/cpu.png)"


def test_the_page_says_what_the_results_say() -> None:
    text = PAGE.read_text("utf-8")
    assert text == page.replaced(text, results_page.body(PAGE), PAGE), (
        "run: python benchmarks/results_page.py --write docs/results.md"
    )
