"""Norms and gated activations on a CPU as one node of the graph each, which keep little.

transformers writes them as a dozen operations whose results in fp32 all stay until the backward
pass: 11.5 KiB a token and block of SmolLM2 for the norms alone, of 30 in all. Here a norm keeps its
input and one number a token, an activation its two inputs. On CUDA liger's kernels do the same
(`kernels`). Knows modules and their formulas; knows nothing of experts.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedModel


def use_lean_modules(model: PreTrainedModel) -> int:
    """Gives norms and gated MLPs of a frozen model on a CPU a lean form; how many.

    A module is changed only if it computes the formula that the lean form knows, which is tried on
    random input: others with the same parts (a norm that adds one to its weight) stay as they are.
    """
    if model.device.type != "cpu":
        return 0
    changed = 0
    for module in model.modules():
        lean = _lean_form(module, model.dtype)
        if lean is not None:
            module.__class__ = lean
            changed += 1
    return changed


def _lean_form(module: nn.Module, dtype: torch.dtype) -> Any:
    """The lean subclass of a module's class; None where it computes something else, or is lean."""
    kind: Any = type(module)
    # A second argument (a gate, a residual) is a formula that the lean form does not know.
    if hasattr(kind, _MARK) or len(inspect.signature(kind.forward).parameters) != 2:
        return None
    if kind.__name__.endswith("RMSNorm") and _is_rms_norm(module):
        return _lean_norm(kind)
    if kind.__name__.endswith("MLP") and _is_gated(module, dtype):
        return _lean_mlp(kind)
    return None


_MARK = "_dylora_lean"
"""Attribute of the classes made here."""


def _is_rms_norm(module: nn.Module) -> bool:
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or not isinstance(epsilon, float):
        return False
    x = torch.randn(3, len(weight), dtype=weight.dtype, generator=_generator())
    with torch.no_grad():
        return torch.equal(module(x), _RmsNorm.apply(x, weight, epsilon))


def _is_gated(module: nn.Module, dtype: torch.dtype) -> bool:
    parts = dict(module.named_children())
    names = {"gate_proj", "up_proj", "down_proj", "act_fn"}
    if set(parts) != names or not isinstance(parts["gate_proj"], nn.Linear):
        return False
    # The model's dtype, since quantized weights are integers; a large row, since some are clamped.
    x = torch.randn(2, parts["gate_proj"].in_features, dtype=dtype, generator=_generator())
    x[1] *= 100
    with torch.no_grad():
        if not torch.equal(parts["act_fn"](x), functional.silu(x)):
            return False
        return torch.equal(module(x), _gated(module, x))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@cache
def _lean_norm(kind: Any) -> Any:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        if not _learns(hidden_states) or self.weight.requires_grad:
            found: Tensor = kind.forward(self, hidden_states)
            return found
        normed: Tensor = _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)
        return normed

    return type(kind.__name__, (kind,), {"forward": forward, _MARK: True})


@cache
def _lean_mlp(kind: Any) -> Any:
    def forward(self: Any, x: Tensor) -> Tensor:
        found: Tensor = _gated(self, x) if torch.is_grad_enabled() else kind.forward(self, x)
        return found

    return type(kind.__name__, (kind,), {"forward": forward, _MARK: True})


def _gated(module: Any, x: Tensor) -> Tensor:
    gate, up = module.gate_proj(x), module.up_proj(x)
    if _learns(gate) or _learns(up):
        hidden: Tensor = _SiluMul.apply(gate, up)
    else:
        hidden = functional.silu(gate) * up
    found: Tensor = module.down_proj(hidden)
    return found


def _learns(x: Tensor) -> bool:
    # Compilers fuse the operations themselves.
    return torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling()


class _RmsNorm(torch.autograd.Function):
    """`w * x / rms(x)` (Zhang and Sennrich, 2019), the statistics in fp32; `w` is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale  # fp32, as the scale is; never in place, since in fp32 x is the input.
        inner = (gradient * weight).float()
        along = (inner * normed).mean(-1, keepdim=True)
        return inner.sub_(normed.mul_(along)).mul_(scale).to(x.dtype), None, None


class _SiluMul(torch.autograd.Function):
    """`silu(gate) * up`, made again in the backward pass instead of kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        d_up = functional.silu(gate).mul_(gradient)
        return torch.ops.aten.silu_backward(gradient * up, gate), d_up
