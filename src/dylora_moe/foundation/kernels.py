"""What makes a loaded model compute faster and not otherwise: liger's kernels on CUDA.

The one file that imports liger. Knows which of its kernels may be used: norms, rotary positions
and gated linear units. Its losses stay off, as the loss here is taken at trained positions alone,
and so does whatever replaces the model's own `forward`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from transformers import PreTrainedModel

_ROPE = "apply_rotary_pos_emb"
_SILU = ("silu", "swish")
_TANH_GELU = ("gelu_pytorch_tanh", "gelu_new")


def liger_installed() -> bool:
    """Whether there are kernels to use on CUDA; imports nothing."""
    return find_spec("liger_kernel") is not None


def apply_kernels(model: PreTrainedModel, device: torch.device) -> bool:
    """Gives the instance liger's kernels where device, family and what is installed allow.

    Modules stay the same objects with the same linear layers inside, so adapters, the tap, replays
    and checkpointing see the model they know. Other models in this process stay as they are.

    Args:
        model: without adapters.
        device: where it is to compute.

    Returns:
        Whether it did.
    """
    if device.type != "cuda" or not liger_installed():
        return False
    from liger_kernel.transformers import monkey_patch

    if model.config.model_type not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        return False
    with _contained(sys.modules[type(model).__module__]):
        monkey_patch._apply_liger_kernel_to_instance(model=model, **_choices(model))
    return True


def _choices(model: PreTrainedModel) -> dict[str, bool]:
    config = model.config.get_text_config()
    # Bound without a look at the activation, which the configuration may have changed.
    gated = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    return {
        "rms_norm": True,
        "rope": True,
        "swiglu": gated in _SILU,
        "geglu": gated in _TANH_GELU,
        "cross_entropy": False,
        "fused_linear_cross_entropy": False,
    }


@contextmanager
def _contained(family: ModuleType) -> Iterator[None]:
    """Takes back what liger replaces in the family's module for the whole process.

    The instance has its norms and units already; only rotary positions are looked up in the module
    at every pass, so that function stays, for tensors on CUDA.
    """
    before = dict(vars(family))
    try:
        yield
    finally:
        for name, stock in before.items():
            new = getattr(family, name)
            if new is stock:
                continue
            keep = name == _ROPE and not isinstance(stock, _ByDevice)
            setattr(family, name, _ByDevice(new, stock) if keep else stock)


class _ByDevice:
    """Calls one function for tensors on CUDA and another for all others."""

    def __init__(self, fast: Callable[..., Any], stock: Callable[..., Any]) -> None:
        self._fast, self._stock = fast, stock

    def __call__(self, q: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        chosen = self._fast if q.device.type == "cuda" else self._stock
        return chosen(q, *args, **kwargs)
