from __future__ import annotations

import os

import pytest
import torch

from dylora_moe.errors import BaseModelError, ConfigError
from dylora_moe.foundation import placement
from dylora_moe.foundation.placement import choose_device, choose_dtype, cpu_has_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("cpuinfo", "bf16"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile", True),
        ("flags\t\t: fpu avx2 amx_bf16", True),
        ("flags\t\t: fpu avx2 avx512f avx512bw", False),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("Features\t: fp asimd fphp", False),
        ("", False),
    ],
)
def test_bf16_is_chosen_where_the_processor_has_it_and_else_fp32(
    cpuinfo: str, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cpu_has_bf16(cpuinfo) is bf16
    monkeypatch.setattr("dylora_moe.foundation.placement.cpu_has_bf16", lambda: bf16)
    assert choose_dtype(None, CPU) == (torch.bfloat16 if bf16 else torch.float32)


@pytest.mark.parametrize("bf16", [True, False])
def test_an_old_gpu_gets_fp16(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    chosen = choose_dtype("auto", torch.device("cuda"))
    assert chosen == (torch.bfloat16 if bf16 else torch.float16)


@pytest.mark.parametrize(
    ("cuda", "mps", "best"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_the_best_device_is_chosen(
    cuda: bool, mps: bool, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device().type == choose_device("auto").type == best


def test_what_is_asked_for_is_given() -> None:
    assert choose_device("cpu") == CPU
    assert choose_dtype("fp16", CPU) == torch.float16
    assert choose_dtype("bfloat16", CPU) == torch.bfloat16


def test_wrong_or_absent_devices_and_dtypes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BaseModelError, match="'cuda:1' is not available"):
        choose_device("cuda:1")
    with pytest.raises(ConfigError, match="no device 'gpu'"):
        choose_device("gpu")
    with pytest.raises(ConfigError, match="not supported"):
        choose_device("meta")
    with pytest.raises(ConfigError, match="no dtype 'int8'"):
        choose_dtype("int8", CPU)


def test_the_kernel_cache_is_limited_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    placement.limit_kernel_cache()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    placement.limit_kernel_cache()
    assert int(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) < 1024
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
