"""Runs generated Python against asserts in a process of its own, with limits.

Keeps a runaway answer (endless loop, memory, huge files, `sys.exit`) from hurting the evaluation.
It is no wall against hostile code: the network and readable files stay within its reach.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

_RUNNER = """
import json, os, resource, sys
job = json.load(sys.stdin)
for kind, limit in job["limits"].items():
    try:
        resource.setrlimit(getattr(resource, kind), (limit, limit))
    except (ValueError, OSError):  # macOS refuses some of them; the timeout still holds
        pass
# What the answer prints goes nowhere; only the runner holds the way back.
reply, quiet = os.dup(1), os.open(os.devnull, os.O_WRONLY)
os.dup2(quiet, 1)
os.dup2(quiet, 2)
write, token, space = os.write, job["token"].encode(), {"__name__": "answer"}
exec(compile(job["code"], "answer", "exec"), space)
for test in job["tests"]:
    exec(compile(test, "test", "exec"), space)
write(reply, token)
"""


def asserts_hold(
    code: str,
    asserts: Sequence[str],
    *,
    timeout_s: float = 5.0,
    memory_bytes: int = 1 << 30,
    file_bytes: int = 1 << 20,
) -> bool:
    """Whether every assert holds after running the code; with no asserts at all it does not.

    Runs `python -I` (no user site, no PYTHON* variables) in an empty temporary folder, with limits
    on CPU time, address space and file size. It passes only if the last assert is reached and
    holds: leaving early with exit code 0 does not count.

    Args:
        code: the generated program.
        asserts: Python statements, run one after the other in the program's name space.
        timeout_s: wall-clock seconds until it is killed, with every process it started.
        memory_bytes: limit of the address space.
        file_bytes: limit of the size of any file it writes.
    """
    if not asserts:
        return False
    token = secrets.token_hex(16)
    limits = {
        "RLIMIT_CPU": max(1, round(timeout_s)),
        "RLIMIT_AS": memory_bytes,
        "RLIMIT_FSIZE": file_bytes,
        "RLIMIT_CORE": 0,
    }
    job = json.dumps({"code": code, "tests": list(asserts), "token": token, "limits": limits})
    with tempfile.TemporaryDirectory(prefix="dylora-tests-", ignore_cleanup_errors=True) as folder:
        return _run(job, folder, timeout_s) == token.encode()


def _run(job: str, folder: str, timeout_s: float) -> bytes:
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _RUNNER],
        cwd=folder,
        env={"PATH": os.defpath, "HOME": folder, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that its children can be killed with it
    )
    with process:
        try:
            reply, _ = process.communicate(job.encode(), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            reply = b""
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return bytes(reply)
