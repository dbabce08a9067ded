from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from dylora_moe.scoring.sandbox import asserts_hold

DOUBLE = "def double(x):\n    return 2 * x\n"


def test_right_code_passes_and_wrong_code_does_not() -> None:
    assert asserts_hold(DOUBLE, ["assert double(2) == 4", "assert double(0) == 0"])
    assert not asserts_hold(DOUBLE, ["assert double(2) == 4", "assert double(2) == 5"])


@pytest.mark.parametrize(
    "code",
    [
        "def double(x:",
        "raise ValueError",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "print('passed')\nquit()",
        "x = bytearray(4 << 30)",
    ],
)
def test_code_that_never_reaches_the_last_assert_does_not_pass(code: str) -> None:
    assert not asserts_hold(code, ["assert True"])


def test_no_asserts_do_not_pass() -> None:
    assert not asserts_hold(DOUBLE, [])


def test_an_endless_loop_is_stopped_with_its_children() -> None:
    begun = time.monotonic()
    code = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'while 1: pass'])\n"
    assert not asserts_hold(code + "while True: pass", ["assert True"], timeout_s=1.0)
    assert time.monotonic() - begun < 10


def test_it_runs_isolated_in_an_empty_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "1")
    code = "import os, sys\nfound = (os.listdir(), 'SECRET_OF_THE_PARENT' in os.environ)"
    asserts = ["assert found == ([], False)", "assert sys.flags.isolated"]
    assert asserts_hold(code, asserts)


def test_what_it_prints_or_reads_changes_nothing() -> None:
    noisy = "print('x' * 10_000_000)\nimport sys\nsys.stderr.write('y' * 100_000)\n"
    assert asserts_hold(noisy + "left = sys.stdin.read()", ["assert left == ''"])


@pytest.mark.skipif(sys.platform != "linux", reason="limits differ elsewhere")
def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'big')!r}, 'wb').write(bytes(8 << 20))"
    assert not asserts_hold(code, ["assert True"])
    assert (tmp_path / "big").stat().st_size <= 1 << 20
