"""Lean norms and MLPs give the models' own results and gradients, and nothing else changes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from dylora_moe.foundation import lean
from dylora_moe.foundation.base import wrap
from dylora_moe.foundation.lean import use_lean_modules
from tests.models import FAMILIES, tiny, tiny_tokenizer

BLOCKS = 4
CHANGED = {
    "llama": 3 * BLOCKS + 1,
    "mistral": 3 * BLOCKS + 1,
    "qwen2": 3 * BLOCKS + 1,
    "qwen3": 5 * BLOCKS + 1,
}
"""Two norms a block (and those of queries and keys), one at the end, one MLP a block. The others'
norms add one or have a bias, and their MLPs have another activation."""


def leaned(family: str = "llama", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model = tiny(family, dtype=dtype).requires_grad_(False)
    assert use_lean_modules(model) == CHANGED.get(family, 0)
    return model


def plain(family: str = "llama", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return tiny(family, dtype=dtype).requires_grad_(False)


def ids() -> Tensor:
    return torch.arange(24).view(2, 12) + 5


def input_gradient(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """The logits, and the gradient of the embedded tokens."""
    embedded = model.get_input_embeddings()(ids()).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, use_cache=False).logits
    logits.float().log_softmax(-1)[..., 7].mean().backward()
    assert embedded.grad is not None
    return logits.detach(), embedded.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_same_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    model, other = leaned(family, dtype), plain(family, dtype)
    with torch.no_grad():
        assert torch.equal(model(ids()).logits, other(ids()).logits)
    assert torch.equal(input_gradient(model)[0], input_gradient(other)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_the_input_is_the_same(family: str) -> None:
    found, expected = input_gradient(leaned(family))[1], input_gradient(plain(family))[1]
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", tuple(CHANGED))
def test_the_gradient_in_bf16_is_no_further_off_than_the_models_own(family: str) -> None:
    exact = input_gradient(plain(family))[1]
    ours, theirs = (
        float((input_gradient(model)[1].float() - exact).norm() / exact.norm())
        for model in (leaned(family, torch.bfloat16), plain(family, torch.bfloat16))
    )
    assert ours < 1.3 * theirs + 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_backward_pass_leaves_the_input_as_it_was(dtype: torch.dtype) -> None:
    model = leaned(dtype=dtype)
    for module in (model.model.norm, model.model.layers[0].mlp):
        x = torch.randn(3, 32).to(dtype).requires_grad_()
        before = x.detach().clone()
        result = module(x)
        for _ in range(2):
            result.sum().backward(retain_graph=True)
        assert torch.equal(x.detach(), before)


def test_a_norm_that_adds_one_stays_as_it_is() -> None:
    model = leaned("gemma")
    assert type(model.model.norm) is GemmaRMSNorm


class _ClampedMLP(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        gate = self.act_fn(self.gate_proj(x)).clamp(max=7)
        found: Tensor = self.down_proj(gate * self.up_proj(x))
        return found


class _TwoInputsRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        found: Tensor = super().forward(hidden_states)
        return found if gate is None else found * functional.silu(gate)


def test_other_formulas_with_the_same_parts_stay_as_they_are() -> None:
    model = plain()
    model.model.norm.__class__ = _TwoInputsRMSNorm
    for block in model.model.layers:
        block.mlp.__class__ = _ClampedMLP
    assert use_lean_modules(model) == 2 * BLOCKS


class _SparseMLP(LlamaMLP):
    """As in Gemma 3n: each block's own share of its activations is left out."""

    left_out = 0.0

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        gate = torch.where(gate < gate.float().quantile(self.left_out, -1, True), 0, gate)
        found: Tensor = self.down_proj(self.act_fn(gate) * self.up_proj(x))
        return found


def test_modules_of_one_class_with_settings_of_their_own_are_told_apart() -> None:
    model = plain()
    for block in model.model.layers:
        block.mlp.__class__ = _SparseMLP
    model.model.layers[2].mlp.left_out = 0.5
    assert use_lean_modules(model) == CHANGED["llama"] - 1
    assert type(model.model.layers[2].mlp) is _SparseMLP


class _WideRMSNorm(LlamaRMSNorm):
    """Multiplies with its weight before it rounds."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        wide = hidden_states.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight.float() * (wide * scale)).to(hidden_states.dtype)


def test_numbers_that_hide_a_formula_do_not_decide_for_modules_made_alike() -> None:
    model = plain(dtype=torch.bfloat16)
    for module in model.modules():
        if type(module) is LlamaRMSNorm:
            module.__class__ = _WideRMSNorm
            module.weight.fill_(1.0)
        if type(module) is LlamaMLP:
            module.__class__ = _ClampedMLP
            module.down_proj.weight.zero_()
    assert use_lean_modules(model) == 0


def test_modules_made_alike_are_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[nn.Module] = []
    form = lean._lean_form

    def counted(module: nn.Module, dtype: torch.dtype) -> object:
        tried.append(module)
        return form(module, dtype)

    monkeypatch.setattr(lean, "_lean_form", counted)
    leaned("qwen3")
    # Those of queries and keys are as the others, of another width.
    assert [type(module).__mro__[1].__name__ for module in tried] == ["Qwen3RMSNorm", "Qwen3MLP"]


def test_a_weight_that_learns_runs_the_models_own_forward() -> None:
    model, other = leaned(), plain()
    for each in (model, other):
        for module in each.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.weight.requires_grad_(True)
    for each in (model, other):
        input_gradient(each)
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        if ours.requires_grad:
            assert ours.grad is not None, name
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_mlp_weights_that_learn_have_their_gradients() -> None:
    model, other = leaned(), plain()
    for each in (model, other):
        for block in each.model.layers:
            block.mlp.requires_grad_(True)
        input_gradient(each)
    for ours, theirs in zip(model.model.layers, other.model.layers, strict=True):
        for part in ("gate_proj", "up_proj", "down_proj"):
            found = getattr(ours.mlp, part).weight.grad
            expected = getattr(theirs.mlp, part).weight.grad
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_second_time_nothing_changes() -> None:
    model = leaned()
    kinds = [type(module) for module in model.modules()]
    assert use_lean_modules(model) == 0
    assert [type(module) for module in model.modules()] == kinds


def test_a_lean_model_is_saved_loaded_and_copied_as_ever(tmp_path: Path) -> None:
    model = leaned()
    assert [type(m).__name__ for m in model.modules()] == [
        type(m).__name__ for m in plain().modules()
    ]
    model.save_pretrained(tmp_path)
    loaded, copied = AutoModelForCausalLM.from_pretrained(tmp_path), copy.deepcopy(model)
    assert type(loaded.model.norm) is LlamaRMSNorm
    assert type(copied.model.norm) is type(model.model.norm)
    assert copied.model.norm.weight is not model.model.norm.weight
    with torch.no_grad():
        for each in (loaded.eval(), copied):
            assert torch.equal(each(ids()).logits, model(ids()).logits)


@pytest.mark.parametrize("part", ["norm", "mlp"])
def test_a_lean_module_compiles_without_a_break(part: str) -> None:
    model = leaned()
    module = model.model.norm if part == "norm" else model.model.layers[0].mlp
    found = []
    for form in (torch.compile(module, fullgraph=True, backend="aot_eager"), module):
        x = torch.linspace(-2, 2, 96).view(3, 32).requires_grad_()
        result = form(x)
        result.square().sum().backward()
        found.append((result.detach(), x.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantized_mlps_are_lean_too(quantize: str) -> None:
    base = wrap(tiny(dtype=torch.bfloat16), tiny_tokenizer(), name="tiny", tap=2, quantize=quantize)
    for block in base.model.model.layers:
        assert type(block.mlp) is not LlamaMLP
        assert isinstance(block.mlp, LlamaMLP)
