"""The highest memory of a stretch of work: of the process on Linux, or of the device."""

from __future__ import annotations

from pathlib import Path

import torch
import workload
from harness import Options


def forget() -> None:
    """What was used before does not count: setting up a pool is not learning."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        raise SystemExit(
            f"there is no {clear}, by which the peak of a process is reset; run it on Linux"
        )
    clear.write_text("5", encoding="ascii")


def read(options: Options) -> int:
    """Bytes at the peak since `forget`."""
    if options.device == "cuda":
        return workload.peak_memory(options)
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no VmHWM in /proc/self/status; the peak is measured on Linux only")
