"""Runs every benchmark of this folder, one after another, with a line for each.

    python benchmarks/run_all.py --data path/to/skills   # arguments are handed on

A benchmark that fails does not keep the others from running; at the end the exit code is 1.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness import CANNOT_RUN

FOLDER = Path(__file__).parent


def scripts(folder: Path = FOLDER) -> list[Path]:
    """The scripts that hand a benchmark to the harness, by name."""
    return [path for path in sorted(folder.glob("*.py")) if _calls_harness(path)]


def arguments_of(script: Path, given: Sequence[str]) -> list[str]:
    """What of the arguments a benchmark takes: `--data` and `--rows` only where it learns rows."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data", default=None)
    parser.add_argument("--rows", default=None)
    known, found = parser.parse_known_args(given)
    if _has(script, "uses_data") and known.data is not None:
        found += ["--data", known.data]
    if _has(script, "rows", of="Options") and known.rows is not None:
        found += ["--rows", known.rows]
    return found


def run(script: Path, arguments: Sequence[str]) -> int:
    """Runs one and says how it went; the exit code."""
    print(f"== {script.stem}", flush=True)
    start = time.perf_counter()
    code = subprocess.run([sys.executable, str(script), *arguments], check=False).returncode
    said = {0: "done", CANNOT_RUN: "left out"}.get(code, f"failed with {code}")
    print(f"== {script.stem}: {said} after {time.perf_counter() - start:.0f} s", flush=True)
    return code


def main() -> None:
    codes = {script.stem: run(script, arguments_of(script, sys.argv[1:])) for script in scripts()}
    left = [name for name, code in codes.items() if code == CANNOT_RUN]
    failed = [name for name, code in codes.items() if code not in (0, CANNOT_RUN)]
    print(f"== {len(codes) - len(left) - len(failed)} of {len(codes)} benchmarks ran")
    for word, names in (("left out", left), ("failed", failed)):
        if names:
            print(f"== {word}: {', '.join(names)}")
    sys.exit(1 if failed else 0)


def _calls_harness(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == "harness"
        and "main" in {name.name for name in node.names}
        for node in ast.walk(tree)
    )


def _has(path: Path, keyword: str, of: str = "Benchmark") -> bool:
    """Whether the script calls `of` with this keyword, other than as False."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(
        isinstance(node, ast.Call)
        and ast.unparse(node.func) == of
        and any(one.arg == keyword and ast.unparse(one.value) != "False" for one in node.keywords)
        for node in ast.walk(tree)
    )


if __name__ == "__main__":
    main()
