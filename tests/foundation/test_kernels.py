"""Laws of liger's kernels, with a double of its package: asked on CUDA alone, and contained."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama

from dylora_moe.foundation import kernels
from dylora_moe.foundation.kernels import apply_kernels
from tests.models import tiny, tiny_base

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What the double of liger was asked for; like liger it replaces things of the family."""
    told: list[dict[str, Any]] = []
    stock = dict(vars(modeling_llama))

    def apply(model: object, **choices: bool) -> None:
        told.append({"model": model, **choices})
        modeling_llama.LlamaRMSNorm = ModuleType  # type: ignore[misc]
        modeling_llama.apply_rotary_pos_emb = lambda q, *_: "fast"

    patching = SimpleNamespace(
        MODEL_TYPE_TO_APPLY_LIGER_FN={"llama": apply, "gemma": apply},
        _apply_liger_kernel_to_instance=apply,
    )
    package = ModuleType("liger_kernel.transformers")
    package.monkey_patch = patching  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", package)
    monkeypatch.setattr(kernels, "liger_installed", lambda: True)
    yield told
    for name in ("LlamaRMSNorm", "apply_rotary_pos_emb"):
        setattr(modeling_llama, name, stock[name])


def test_on_cuda_a_known_family_gets_norms_positions_and_units_and_no_loss(
    calls: list[dict[str, Any]],
) -> None:
    model = tiny()
    assert apply_kernels(model, CUDA)
    assert calls == [
        {
            "model": model, "rms_norm": True, "rope": True, "swiglu": True, "geglu": False,
            "cross_entropy": False, "fused_linear_cross_entropy": False,
        }
    ]  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_elsewhere_it_is_never_asked(calls: list[dict[str, Any]], device: str) -> None:
    assert not apply_kernels(tiny(), torch.device(device))
    tiny_base()
    assert calls == []


def test_a_family_it_does_not_know_and_a_machine_without_it_stay_stock(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not apply_kernels(tiny("gpt_neox"), CUDA)
    monkeypatch.setattr(kernels, "liger_installed", lambda: False)
    assert not apply_kernels(tiny(), CUDA)
    assert calls == []


def test_units_with_another_activation_keep_their_own(calls: list[dict[str, Any]]) -> None:
    model = tiny()
    model.config.hidden_act = "relu"
    apply_kernels(model, CUDA)
    apply_kernels(tiny("gemma"), CUDA)
    assert [(c["swiglu"], c["geglu"]) for c in calls] == [(False, False), (False, True)]


def test_another_model_of_the_family_on_a_cpu_computes_as_before(
    calls: list[dict[str, Any]],
) -> None:
    ids = torch.arange(12)[None] + 5
    with torch.no_grad():
        before = tiny()(ids, use_cache=False).logits
        norm = modeling_llama.LlamaRMSNorm
        for _ in range(2):
            assert apply_kernels(tiny(), CUDA)
            assert modeling_llama.LlamaRMSNorm is norm
            assert torch.equal(tiny()(ids, use_cache=False).logits, before)
    on_cuda = SimpleNamespace(device=CUDA)
    assert modeling_llama.apply_rotary_pos_emb(on_cuda, None, None, None) == "fast"
