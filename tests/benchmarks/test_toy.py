"""Every benchmark runs at toy size, and what it writes can be read: rows, and checks that hold."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import harness
import pytest
import run_all
import verdicts
from machine import installed

from tests import docs_reading as docs

BENCHMARKS = run_all.scripts()
NO_BENCHMARKS = {
    "ablations",
    "held_out",
    "hostile",
    "neighbours",
    "novelty_choices",
    "parts",
    "pieces",
    "real_skills",
    "results_page",
    "router_choices",
    "router_features",
    "run_all",
    "scoreboard",
    "screening",
    "serving",
    "traffic",
}
"""Scripts that do not go through the harness: they learn a pool, or show results."""


def test_every_script_is_a_benchmark_on_the_harness_or_known_not_to_be() -> None:
    folder = docs.ROOT / "benchmarks"
    scripts = {p.stem for p in folder.glob("*.py") if 'if __name__ == "__main__"' in p.read_text()}
    found = {path.stem for path in BENCHMARKS}
    assert found == scripts - NO_BENCHMARKS
    assert found >= {"training_step", "decode_step", "matmul_rate", "expert_memory"}
    assert len(found) >= 4


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_runs_at_toy_size_and_its_checks_hold(script: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(script), "--toy", "--device", "cpu", "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == harness.CANNOT_RUN:
        reason = done.stderr.strip().splitlines()[-1]
        # It may be left out for what is really not here, and for nothing else.
        assert "cuda only" in reason or installed("trl") is None, reason
        pytest.skip(reason)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (result,) = verdicts.read_results(tmp_path)
    assert result.name == script.stem
    values = [row.value for row in result.rows if row.value is not None]
    assert values
    assert all(math.isfinite(value) for value in values)
    assert set(result.raw["theirs"]) <= set(result.raw["rounds"][0])
    assert result.raw["checks"]
    assert all(check["holds"] for check in result.raw["checks"])
    assert result.path.with_suffix(".png").stat().st_size > 1000
    assert str(docs.ROOT) not in json.dumps(result.raw), "a machine's path in a result"
