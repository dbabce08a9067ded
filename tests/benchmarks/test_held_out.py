"""Held-out losses beside TRL: of the same rows and seeds, against its better arm."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import held_out
import peers
import pytest
import workload
from harness import Options
from held_out import OURS, PACKED, PACKED_ALL, PADDED, Run
from study import cached

from dylora_moe.records import pair
from dylora_moe.training.measure import answer_losses

TOKENS = (2, 1, 3)


def run(arm: str, seed: int, *losses: float) -> Run:
    return Run(arm, "counting", 64, seed, losses, TOKENS)


RUNS = [
    run(OURS, 0, 2.0, 1.0, 3.0),
    run(OURS, 1, 4.0, 2.0, 6.0),
    run(PACKED, 0, 4.0, 2.0, 6.0),
    run(PACKED, 1, 8.0, 4.0, 12.0),
    run(PADDED, 0, 3.0, 2.0, 6.0),
    # Nothing of ours is beside it.
    run(PACKED, 7, 0.1, 0.1, 0.1),
]


def test_both_sides_have_the_same_seeds_and_every_row_its_tokens() -> None:
    found = held_out.compared(RUNS, OURS, PACKED)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert held_out.compared(RUNS, OURS, PACKED_ALL) is None
    uneven = [run(OURS, 0, 2.0, 1.0, 3.0), run(PACKED, 0, 1.0, 2.0, 9.0)]
    found = held_out.compared(uneven, OURS, PACKED)
    assert found is not None
    assert found.value == pytest.approx(6 / 12)
    assert found.low < 0.5 < found.high


def test_seeds_that_differ_make_the_interval_wider() -> None:
    apart = [
        run(OURS, 0, *TOKENS), run(OURS, 1, *(3.0 * one for one in TOKENS)),
        *(run(PACKED, seed, *(2.0 * one for one in TOKENS)) for seed in (0, 1)),
    ]  # fmt: skip
    found = held_out.compared(apart, OURS, PACKED)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 0.5, 1.5))


def test_the_rows_are_against_the_better_of_the_peer_s_arms_and_judged_by_the_interval() -> None:
    (row,) = held_out.rows(RUNS)
    assert row.note == f"{PACKED}, seeds: 2", "the other has one seed alone"
    better = [*RUNS[:4], run(PADDED, 0, 0.5, 0.5, 1.0), run(PADDED, 1, 0.5, 0.5, 1.0)]
    (row,) = held_out.rows(better)
    assert row.value == pytest.approx(9.0 / 2.0)
    assert row.note == f"{PADDED}, seeds: 2"
    assert row.interval
    assert (row.must, row.aim, row.direction) == (1.01, 1.0, "at most")


def test_what_was_run_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    assert held_out.read(path) == []
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in RUNS), encoding="utf-8")
    assert held_out.read(path) == RUNS
    assert held_out.document(RUNS)["means"][PADDED] == {"0": pytest.approx(11 / 6)}


def test_runs_of_another_size_are_not_taken_for_these(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in RUNS), encoding="utf-8")
    with pytest.raises(SystemExit):
        held_out.main(["--data", str(tmp_path), "--runs", str(path), "--rows", "32"])
    assert "has trainings on 64 rows, judged by 3" in capsys.readouterr().err


def test_the_peer_s_losses_are_measured_as_ours() -> None:
    base = workload.load(Options(toy=True, device="cpu", dtype="fp32"))
    rows = cached(base, [pair(f"Say {n}", str(10**n)) for n in range(5)])
    losses, tokens = peers.row_losses(base.model, base, rows.encoded)
    ours = answer_losses(workload.ours(base, 1), rows, expert="base")
    assert list(tokens) == ours.tokens.tolist()
    assert list(losses) == pytest.approx(ours.total.tolist(), rel=1e-5)
