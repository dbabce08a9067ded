"""Chooses the device and the compute dtype a base runs in.

Knows processors; knows nothing of models. bf16 wherever the processor computes in it (2.6 times
as fast as fp32 on such a CPU), since emulated bf16 is slower than fp32.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from dylora_moe.errors import BaseModelError, ConfigError

DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
}

_KERNELS = 64
_X86_FLAGS = {"avx512_bf16", "amx_bf16"}
_ARM_FLAGS = {"bf16"}


def choose_device(device: str | None = None) -> torch.device:
    """The device asked for, or the best there is: CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: no such kind of device.
        BaseModelError: the device is not in this machine.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device is None or device == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"no device {device!r}; use cpu, cuda, cuda:1 or mps") from error
    present = {
        "cpu": True,
        "cuda": cuda and (chosen.index or 0) < torch.cuda.device_count(),
        "mps": mps,
    }
    if chosen.type not in present:
        raise ConfigError(f"device {device!r} is not supported; use cpu, cuda, cuda:1 or mps")
    if not present[chosen.type]:
        raise BaseModelError(
            f"device {device!r} is not available to this build of torch on this machine; "
            "use --device cpu, or leave it out"
        )
    return chosen


def choose_dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    """The dtype asked for (bf16, fp16 or fp32), or the best that the device computes in.

    Raises:
        ConfigError: no such dtype.
    """
    if dtype is not None and dtype != "auto":
        if dtype not in DTYPES:
            raise ConfigError(f"no dtype {dtype!r}; use bf16, fp16 or fp32")
        return DTYPES[dtype]
    if device.type == "cuda":
        return _preferred("cuda", torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps":
        return _preferred("mps", mps_has_bf16())
    return _preferred("cpu", cpu_has_bf16())


def _preferred(kind: str, bf16: bool) -> torch.dtype:
    """bf16 where there is; else fp16 on an accelerator, fp32 on a CPU (fp16 is slow there)."""
    if bf16:
        return torch.bfloat16
    return torch.float32 if kind == "cpu" else torch.float16


def limit_kernel_cache() -> None:
    """Keeps fewer of the kernels that oneDNN generates for products on a CPU, one for each shape.

    Batches of rows meet hundreds of shapes and hardly any twice; by default the last 1,024 stay,
    0.3 GiB when SmolLM2 learns a skill. Works before the first product of the process; a value that
    is in the environment is left.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_KERNELS))


def cpu_has_bf16(cpuinfo: str | None = None) -> bool:
    """Whether the processor multiplies bf16 in hardware.

    Args:
        cpuinfo: text of Linux's `/proc/cpuinfo`; read from there where None. macOS is asked by
            `sysctl`; on other systems the answer is no.
    """
    if cpuinfo is None:
        if sys.platform == "darwin":
            return _sysctl("hw.optional.arm.FEAT_BF16") == "1"
        source = Path("/proc/cpuinfo")
        if not source.exists():
            return False
        cpuinfo = source.read_text(errors="replace")
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return bool(_X86_FLAGS & set(value.split()))
        if key.strip() == "Features":
            return bool(_ARM_FLAGS & set(value.split()))
    return False


def mps_has_bf16() -> bool:
    """bf16 on MPS needs macOS 14."""
    release = platform.mac_ver()[0]
    return bool(release) and int(release.split(".")[0]) >= 14


def _sysctl(name: str) -> str:
    asked = subprocess.run(
        ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False, timeout=5
    )
    return asked.stdout.strip()
