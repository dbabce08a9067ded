"""PEFT's X-LoRA as its documentation sets it up: adapters on disk, a classifier over the model.

Knows PEFT; knows nothing of ours.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import workload
from torch import nn

from dylora_moe.foundation.base import Base
from dylora_moe.foundation.quiet import quiet


def adapters(base: Base, count: int, targets: str, folder: Path) -> dict[str, str]:
    """Random PEFT adapters on disk, by name; the base is stock again afterwards."""
    found = {}
    for index in range(count):
        model = workload.peft_lora(base, targets, seed=index + 1)
        with quiet():
            model.save_pretrained(str(folder / str(index)))  # type: ignore[operator]
            model.unload()  # type: ignore[operator]
        if hasattr(base.model, "peft_config"):
            del base.model.peft_config
        # PEFT 0.21 loads them under their number, whatever they are called here.
        found[str(index)] = str(folder / str(index))
    return found


def xlora(base: Base, count: int, targets: str, *, trainable: bool = False) -> nn.Module:
    """X-LoRA over `count` adapters on all blocks; its gate is as PEFT starts it."""
    from peft import XLoraConfig, get_peft_model

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = adapters(base, count, targets, Path(folder))
        base.model.config.use_cache = False
        config = XLoraConfig(
            task_type="CAUSAL_LM",
            hidden_size=base.anatomy.d_model,
            xlora_depth=1,
            adapters=paths,
            use_trainable_adapters=trainable,
        )
        with quiet():
            model: nn.Module = get_peft_model(base.model, config)
    # In bf16 the classifier would not meet the hidden states' dtype.
    return model.to(base.dtype)
