"""The scoreboard shows what falls short first, and the page says what the result files say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import page
import pytest
import scoreboard
import verdicts
from measured import Row, Samples
from verdicts import Verdict

from tests import docs_reading as docs

PAGE = docs.ROOT / "docs" / "benchmarks.md"
FIELDS = {"measure", "value", "direction", "must", "aim"}


def written(folder: Path, name: str, *rows: dict[str, Any], **more: Any) -> None:
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": list(rows), "checks": [], **more}), encoding="utf-8")


def row(value: float | None, must: float | None, aim: float | None, **more: Any) -> dict[str, Any]:
    found = {"measure": f"m {value}", "value": value, "direction": "at most"}
    return found | {"must": must, "aim": aim} | more


# -- verdicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "must", "aim", "at_most", "at_least"),
    [
        (3.0, 2.0, 1.0, Verdict.SHORT_OF_MUST, Verdict.REACHED),
        (1.5, 2.0, 1.0, Verdict.SHORT_OF_AIM, Verdict.SHORT_OF_MUST),
        (1.0, 2.0, 1.0, Verdict.REACHED, Verdict.SHORT_OF_MUST),
        (1.5, 1.0, 2.0, Verdict.SHORT_OF_MUST, Verdict.SHORT_OF_AIM),
        (0.5, None, 0.6, Verdict.REACHED, Verdict.SHORT_OF_AIM),
        (0.5, 0.6, None, Verdict.REACHED, Verdict.SHORT_OF_MUST),
        (0.5, None, None, Verdict.REPORTED, Verdict.REPORTED),
        (None, 1.0, 1.0, Verdict.NOT_MEASURED, Verdict.NOT_MEASURED),
    ],
)
def test_a_verdict_goes_by_the_direction_and_by_the_goals_there_are(
    value: float | None, must: float | None, aim: float | None, at_most: Verdict, at_least: Verdict
) -> None:
    one = Row("m", value, "at most", must, aim)
    assert verdicts.judge(one) is at_most
    assert verdicts.judge(replace(one, direction="at least")) is at_least


def test_what_is_short_of_its_must_comes_first_and_the_furthest_before_the_near(
    tmp_path: Path,
) -> None:
    written(tmp_path, "a", row(1.0, 2.0, 1.0), row(1.5, 2.0, 1.0), row(2.1, 2.0, 1.0))
    written(tmp_path, "a-cuda", row(9.0, 2.0, 1.0), row(1.0, None, None))
    written(tmp_path / "continual", "preset", row(1.2, 1.3, 1.1), row(None, 1.0, 1.0))
    found = verdicts.entries(verdicts.read_results(tmp_path))
    assert [one.row.value for one in found] == [9.0, 2.1, 1.5, 1.2, None, 1.0, 1.0]
    assert [one.result.name for one in found][:4] == ["a-cuda", "a", "a", "continual/preset"]


def test_a_row_that_lacks_a_field_is_refused_with_its_file(tmp_path: Path) -> None:
    broken = row(1.0, 2.0, 1.0)
    del broken["aim"]
    written(tmp_path, "a", broken)
    with pytest.raises(ValueError, match=r"a\.json.*aim"):
        verdicts.read_results(tmp_path)


def test_a_ratio_is_taken_round_by_round() -> None:
    rounds = [
        {"a": {"seconds": [2, 2, 9]}, "b": {"seconds": 1}},
        {"a": {"seconds": 8}, "b": {"seconds": 2}},
    ]
    found = Samples(rounds).ratio("a", "b", "m", must=1.0)
    assert (found.value, found.low, found.high, found.must) == (3.0, 2.0, 4.0, 1.0)


# -- what is shown -------------------------------------------------------------------------------


def test_the_scoreboard_prints_every_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(1.0 + n, 2.5, 1.0, measure=f"figure [{n}]") for n in range(3)]
    written(tmp_path, "a", *rows, row(None, None, 1.0, measure="absent"), command="python a.py")
    scoreboard.main(["--results", str(tmp_path)])
    said = capsys.readouterr().out
    for words in ("figure [0]", "figure [1]", "figure [2]", "absent", "python a.py"):
        assert words in said
    assert "4 figures: 1 short of must, 1 short of aim, 1 not measured, 1 reached." in said


def test_the_scoreboard_says_so_where_there_is_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scoreboard.main(["--results", str(tmp_path)])
    assert capsys.readouterr().out == "No figures yet.\n"


def test_what_stands_above_the_mark_stays(tmp_path: Path) -> None:
    written(tmp_path, "a", row(1.0, 2.0, 1.0, note="a | b"), title="What", command="python a.py")
    text = tmp_path / "page.md"
    text.write_text(f"# Mine\n\n{page.MARK}\nold")
    results = ["--results", str(tmp_path), "--write", str(text)]
    scoreboard.main(results)
    once = text.read_text()
    assert once.startswith(f"# Mine\n\n{page.MARK}\n")
    assert "old" not in once
    assert "| m 1.0 (a \\| b) | 1 | - | ≤ 2 | ≤ 1 | reached | a |" in once
    scoreboard.main(results)
    assert text.read_text() == once


def test_a_page_without_a_mark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no line"):
        page.rewritten("# Mine", [], tmp_path / "page.md")


# -- what is kept in this repository -------------------------------------------------------------


def test_the_page_says_what_the_result_files_say() -> None:
    text = PAGE.read_text("utf-8")
    assert text == page.rewritten(text, verdicts.read_results(), PAGE), (
        "run: python benchmarks/scoreboard.py --write docs/benchmarks.md"
    )


def test_every_kept_row_has_its_fields_and_stands_on_the_page() -> None:
    text, counted = PAGE.read_text("utf-8"), 0
    for path in sorted(verdicts.RESULTS.rglob("*.json")):
        found = json.loads(path.read_text("utf-8"))
        for one in found.get("rows", []):
            assert set(one) >= FIELDS, path.name
            assert one["measure"] in text, path.name
            counted += 1
    assert counted > 0
    assert counted == sum(len(result.rows) for result in verdicts.read_results())


def test_no_kept_result_is_of_toy_size_or_has_a_check_that_does_not_hold() -> None:
    for result in verdicts.read_results():
        assert not result.raw.get("settings", {}).get("toy"), result.name
        assert all(check["holds"] for check in result.raw.get("checks", [])), result.name


def test_of_an_interval_the_end_nearest_to_failing_decides_the_must_and_the_point_the_aim() -> None:
    one = Row("m", 0.98, "at least", 0.97, 0.975, low=0.96, high=1.0, interval=True)
    assert verdicts.judge(one) is Verdict.SHORT_OF_MUST
    assert verdicts.judge(replace(one, low=0.972)) is Verdict.REACHED
    assert verdicts.judge(replace(one, low=0.972, aim=0.99)) is Verdict.SHORT_OF_AIM
    assert verdicts.judge(replace(one, interval=False)) is Verdict.REACHED
    most = Row("m", 0.5, "at most", 1.0, 0.6, low=0.4, high=1.1, interval=True)
    assert verdicts.judge(most) is Verdict.SHORT_OF_MUST
    assert verdicts.judge(replace(most, high=0.9)) is Verdict.REACHED


def test_an_infinite_end_fails_the_must_where_it_is_the_near_one_and_only_there() -> None:
    one = Row("m", 2.0, "at least", 0.97, None, low=1.5, high=None, interval=True)
    assert verdicts.judge(one) is Verdict.REACHED
    assert verdicts.spread(one) == "1.5 to ∞"
    assert verdicts.judge(replace(one, low=0.9)) is Verdict.SHORT_OF_MUST
    near = replace(one, low=None, high=3.0)
    assert verdicts.judge(near) is Verdict.SHORT_OF_MUST
    assert verdicts.spread(near) == "-∞ to 3"
    most = Row("m", 0.5, "at most", 1.0, None, low=0.1, high=None, interval=True)
    assert verdicts.judge(most) is Verdict.SHORT_OF_MUST
    assert verdicts.judge(replace(most, interval=False)) is Verdict.REACHED


def test_what_a_benchmark_keeps_to_go_on_with_is_no_result(tmp_path: Path) -> None:
    body = json.dumps({"rows": [{"measure": "m", "value": None, "direction": "at most",
                                 "must": 1, "aim": None}]})  # fmt: skip
    for name in ("cpu.json", "cpu/arms/hard-ours-s0.json", "cpu/work/x/stage-001.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)
    (found,) = verdicts.read_results(tmp_path)
    assert found.name == "cpu"
    assert verdicts.judge(found.rows[0]) is Verdict.NOT_MEASURED
