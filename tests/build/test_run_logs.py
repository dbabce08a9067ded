"""A run's log is read as it was written, and as it breaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dylora_moe.build.run_logs import Histogram, read_run, read_runs, summed


def write_lines(root: Path, lines: list[dict[str, object]], tail: str = "") -> None:
    folder = root / "runs" / "r"
    folder.mkdir(parents=True, exist_ok=True)
    body = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(body + tail, encoding="utf-8")


def test_a_phase_goes_on_until_another_is_named_and_warnings_are_kept(tmp_path: Path) -> None:
    write_lines(tmp_path, [
        {"phase": "seeding", "step": 0, "padding_fraction": 0.1}, {"step": 4, "loss": 2.0},
        {"warning": "no gradient"}, {"phase": "consolidation", "step": 8, "loss": 1.0},
        {"warning": "no gradient"}, {"step": 12, "loss": 0.5},
    ])  # fmt: skip
    (run,) = read_runs(tmp_path, {})
    assert [(point.position, point.phase) for point in run.curves["loss"]] == [
        (4, "seeding"), (8, "consolidation"), (12, "consolidation"),
    ]  # fmt: skip
    assert [(span.name, span.start, span.end) for span in run.phases] == [
        ("seeding", 0, 4), ("consolidation", 4, 12),
    ]  # fmt: skip
    assert run.warnings == ("no gradient",)


def test_a_phase_that_is_redone_supersedes_what_came_after(tmp_path: Path) -> None:
    write_lines(tmp_path, [
        {"phase": "seeding", "step": 4, "loss": 2.0},
        {"phase": "consolidation", "step": 8, "loss": 1.0},
        {"phase": "seeding", "step": 2, "loss": 3.0}, {"phase": "seeding", "step": 4, "loss": 2.5},
    ])  # fmt: skip
    (run,) = read_runs(tmp_path, {})
    assert [span.name for span in run.phases] == ["seeding"]
    assert [point.value for point in run.curves["loss"]] == [3.0, 2.5]


def test_histograms_of_other_edges_are_added_up_without_losing_a_sequence() -> None:
    alike = summed([Histogram((0, 8, 16), (1, 2)), Histogram((0, 8, 16), (3, 4))])
    assert alike == Histogram((0, 8, 16), (4, 6))
    mixed = summed([Histogram((0, 10, 20), (4, 2)), Histogram((10, 20, 30), (6, 8))])
    assert mixed is not None
    assert mixed.edges == (0, 15, 30)
    assert mixed.counts == pytest.approx((4 + 1 + 3, 1 + 3 + 8))


def test_steps_repeated_after_a_resume_supersede_the_first(tmp_path: Path) -> None:
    write_lines(
        tmp_path, [{"phase": "p", "step": s, "loss": s / 10} for s in (1, 2, 3, 4)]
        + [{"phase": "p", "step": s, "loss": s} for s in (3, 4, 5)],
    )  # fmt: skip
    (run,) = read_runs(tmp_path, {})
    assert [(point.position, point.value) for point in run.curves["loss"]] == [
        (1, 0.1), (2, 0.2), (3, 3), (4, 4), (5, 5),
    ]  # fmt: skip


def test_a_torn_line_and_a_nan_are_left_out_and_the_torn_line_is_counted(tmp_path: Path) -> None:
    write_lines(tmp_path, [{"step": 1, "loss": 1.0}, {"step": 2, "loss": float("nan")}], '{"st')
    (run,) = read_runs(tmp_path, {})
    assert [point.value for point in run.curves["loss"]] == [1.0]
    assert run.damaged == 1


def test_histogram_is_read_as_mapping_and_as_pair(tmp_path: Path) -> None:
    key = "packed_sequence_length_histogram"
    for value in ({"counts": [1, 2], "edges": [0, 8, 16]}, [[1, 2], [0, 8, 16]]):
        write_lines(tmp_path, [{"step": 1, key: value}])
        (run,) = read_runs(tmp_path, {})
        assert run.histogram is not None
        assert (run.histogram.counts, run.histogram.edges) == ((1, 2), (0, 8, 16))


def test_one_run_is_read_alone_and_one_that_has_logged_nothing_has_no_curve(tmp_path: Path) -> None:
    write_lines(tmp_path, [{"time": 5.0, "step": 1, "loss": 1.0}])
    assert [read_run(tmp_path / "runs" / "r")] == list(read_runs(tmp_path, {}))
    (tmp_path / "runs" / "new").mkdir()
    new = read_run(tmp_path / "runs" / "new")
    assert (new.run_id, new.curves, new.started) == ("new", {}, None)
