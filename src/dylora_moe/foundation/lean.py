"""Norms and gated activations on a CPU as one node of the graph each, which keep little.

transformers writes them as a dozen operations whose results in fp32 all stay until the backward
pass: 11.5 KiB a token and block of SmolLM2 for the norms alone, of 30 in all. Here a norm keeps its
input and one number a token, an activation its two inputs. On CUDA liger's kernels do the same
(`kernels`). Knows modules and their formulas; knows nothing of experts.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional
from transformers import PreTrainedModel


def use_lean_modules(model: PreTrainedModel) -> int:
    """Gives norms and gated MLPs of a frozen model on a CPU a lean form; how many.

    A module is changed only if it computes the formula that the lean form knows, which is tried on
    random input, once for modules made alike: others with the same parts (a norm that adds one to
    its weight) stay as they are.
    """
    if model.device.type != "cpu":
        return 0
    changed = 0
    tried: dict[Hashable, Any] = {}
    for module in model.modules():
        if not type(module).__name__.endswith(("RMSNorm", "MLP")):
            continue
        make = _make(module)
        if make not in tried:
            tried[make] = _lean_form(module, model.dtype)
        if tried[make] is not None:
            module.__class__ = tried[make]
            changed += 1
    return changed


def _make(module: nn.Module) -> Hashable:
    """What decides the formula of a module: everything but its weights' sizes and numbers.

    Classes alone would not do: some families give each block's activation a setting of its own.
    """
    settings = [
        # What is no plain value counts as the same only where it is the same object.
        (name, type(value), value if isinstance(value, _PLAIN) else id(value))
        for name, value in vars(module).items()
        if name not in _EVERY_MODULES
    ]
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    kinds = [(name, type(tensor), tensor.dtype, tensor.dim()) for name, tensor in tensors]
    parts = [(name, _make(child)) for name, child in module.named_children()]
    return type(module), tuple(settings), tuple(kinds), tuple(parts)


_PLAIN = (bool, int, float, str, type(None))
_EVERY_MODULES = frozenset(vars(nn.Module()))


def gated_mlp(block: nn.Module) -> nn.Module | None:
    """A block's gated MLP, if it has a lean one: it works on each position by itself, and what it
    gives is added to the residual stream alone."""
    found = [one for one in block.children() if hasattr(type(one), _MARK) and _has_parts(one)]
    return found[0] if len(found) == 1 else None


def _has_parts(module: nn.Module) -> bool:
    return {name for name, _ in module.named_children()} == _PARTS


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


_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}

_MARK = "_dylora_lean"
"""Attribute of the classes made here."""


def _is_rms_norm(module: nn.Module) -> bool:
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or not isinstance(epsilon, float):
        return False
    # A weight of random numbers: with ones, as new models have them, other formulas look the same.
    draw = _generator()
    x, other = (torch.randn(n, len(weight), dtype=weight.dtype, generator=draw) for n in (3, 1))
    with torch.no_grad():
        found = functional_call(module, {"weight": other[0]}, (x,))
        return torch.equal(found, _RmsNorm.apply(x, other[0], epsilon))


def _is_gated(module: nn.Module, dtype: torch.dtype) -> bool:
    parts = dict(module.named_children())
    if not _has_parts(module) or not isinstance(parts["gate_proj"], nn.Linear):
        return False
    # The model's dtype, since quantized weights are integers; a large row, since some are clamped.
    x = torch.randn(2, parts["gate_proj"].in_features, dtype=dtype, generator=_generator())
    x[1] *= 100
    with torch.no_grad():
        if not torch.equal(parts["act_fn"](x), functional.silu(x)):
            return False
        found: Tensor = module(x)
        # A product with zeros would be the same whatever stands before it.
        return bool(found.any()) and torch.equal(found, _gated(module, x))


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
        return _gated(self, x)

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
