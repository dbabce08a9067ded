"""Ablations: pairs are of the same skill and seed, and the page says what the result files say."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import ablations
import ablations_table as made
import page
import pytest
import results_page
import study

from dylora_moe.errors import TrainingError
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


WHOLE = [(one.variant, one.skill, one.loss) for one in RUNS[:4]]


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


def test_seeds_of_a_skill_are_no_further_skills() -> None:
    more = [run(v, s, loss, seed) for v, s, loss in WHOLE for seed in (0, 1, 2)]
    (found,), (once,) = made.compared(more), made.compared(RUNS)
    assert found.loss == pytest.approx(once.loss)
    assert len(found.pairs) == 6


def test_a_variant_with_a_training_that_failed_has_no_ratio() -> None:
    lost = replace(run("more", "b", 0.0, seed=1), failed="the loss is not finite")
    runs = [*RUNS[:4], run(made.AS_IT_IS, "b", 2.0, seed=1), lost]
    (found,) = made.compared(runs)
    assert (found.loss, found.right, found.tokens) == (None, None, None)
    (row,) = made.rows(runs)
    assert (row.value, row.note) == (None, "3 trainings each; 1 of 3 pairs failed")
    line = made.table([asdict(one) for one in runs]).splitlines()[2]
    assert line.startswith("| more | 64 | failed | 0.500 | failed | - |")
    # Of the default's too.
    usual = replace(run(made.AS_IT_IS, "b", 0.0), failed="the loss is not finite")
    (found,) = made.compared([RUNS[0], usual, *RUNS[2:4]])
    assert found.loss is None


def test_a_training_that_fails_is_kept_as_such_and_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def train(folder: Path, name: str, rows: int, test: int, seed: int) -> made.Run:
        asked.append(name)
        if name == "more":
            raise TrainingError("the loss is not finite")
        return run(name, folder.name, 1.0, rows=rows)

    variants = (made.AS_IT_IS, "more")
    of = study.Study("ablations", "title", "compared", variants, 64, train)
    out, runs = tmp_path / "out.json", tmp_path / "runs.jsonl"
    words = ["--data", str(tmp_path), "--runs", str(runs), "--skills", "a", "--out", str(out)]
    for _ in range(2):
        study.main(of, words)
    assert asked == list(variants)
    assert "the loss is not finite" in capsys.readouterr().out
    (row,) = json.loads(out.read_text())["rows"]
    assert row["value"] is None
    assert "1 of 1 pairs failed" in row["note"]


def test_the_table_says_what_a_variant_costs_where_it_was_counted() -> None:
    counted = [replace(one, operations=2e9 if one.variant == "more" else 1e9) for one in RUNS[:4]]
    titles, _, line = made.table([asdict(one) for one in counted]).splitlines()
    assert titles.endswith("| tokens / as it is | operations / as it is |")
    assert line.endswith("| 1.00 | 2.00 |")
    # A file of before has none.
    old = [{k: v for k, v in asdict(one).items() if k != "operations"} for one in RUNS[:4]]
    assert made.table(old).splitlines()[2].endswith("| 1.00 | - |")


def test_no_prompt_of_the_test_file_is_trained_on(tmp_path: Path) -> None:
    for part, numbers in (("train", range(6)), ("test", range(4, 8))):
        lines = [json.dumps({"prompt": f"Say {n}", "completion": part}) for n in numbers]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for seed in (0, 1):
        found = study.drawn(tmp_path, 6, seed)
        assert {row.prompt for row in found} == {f"Say {n}" for n in range(4)}


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
