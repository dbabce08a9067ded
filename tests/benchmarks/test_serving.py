"""The serving benchmark runs at toy size, and nothing fails or is mixed up in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import verdicts

from tests import docs_reading as docs


def test_a_toy_pool_is_served_changed_and_ended_under_load(tmp_path: Path) -> None:
    script = docs.ROOT / "benchmarks" / "serving.py"
    command = [sys.executable, str(script), "--toy", "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (result,) = verdicts.read_results(tmp_path)
    found = {row.measure: row.value for row in result.rows}
    assert found["failed or mixed-up answers meanwhile"] == 0
    assert found["answers broken off, and exit code, by SIGTERM under load"] == 0
    assert len(result.raw["found"]["all-linear"]["experts"]) >= 4
    assert result.raw["found"]["change"]["fifth"] == "fifth"
