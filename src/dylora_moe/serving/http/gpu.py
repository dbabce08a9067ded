"""Memory of the GPUs there are, without loading torch for it."""

from __future__ import annotations

import sys


def gpu_memory() -> dict[str, tuple[int, int]]:
    """Bytes used and there are, by device; empty where the process has touched none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    found = {}
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found[f"cuda:{index}"] = (total - free, total)
    return found
