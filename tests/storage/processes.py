"""Runs a piece of Python in a process of its own, for the laws about two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Starts `code`, which finds the arguments in `sys.argv[1:]`."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
    )


def ended(process: subprocess.Popen[str], go: str = "") -> tuple[int, str]:
    """Exit code and output, once the process has read `go` and is done."""
    output, errors = process.communicate(go, timeout=60)
    return process.returncode, output + errors
