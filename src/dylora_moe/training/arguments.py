"""What HF's Trainer is told: its arguments, and the parameters that learn with their rates.

Knows a phase and HF's names; knows no loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from dylora_moe.training.phases import Phase
from dylora_moe.training.updates import UpdatePlan

_LOGS = 100
"""About so many lines of log in a phase."""


def arguments(
    phase: Phase, plan: UpdatePlan, folder: Path, device: torch.device, seed: int
) -> TrainingArguments:
    """HF's settings for a phase: what this room does by itself is switched off in HF's loop.

    Args:
        phase: its rates.
        plan: its steps; HF sees the phase as one epoch of them.
        folder: where checkpoints go.
        device: the base's.
        seed: HF seeds Python, NumPy and torch with it.
    """
    made = TrainingArguments(
        output_dir=str(folder),
        max_steps=plan.steps,
        per_device_train_batch_size=1,
        learning_rate=phase.learning_rate,
        weight_decay=phase.weight_decay,
        max_grad_norm=0.0,  # clipped already, group by group
        logging_steps=max(1, plan.steps // _LOGS),
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        seed=seed,
    )
    # Found first, then set: with several GPUs HF would split every batch over them.
    made._n_gpu = min(1, made.n_gpu)
    return made


def parameter_groups(
    phase: Phase, expert_id: str, groups: Mapping[str, Sequence[nn.Parameter]]
) -> list[dict[str, Any]]:
    """The optimizer's groups: the expert's with weight decay, the gate's without.

    Args:
        phase: its rates.
        expert_id: the expert.
        groups: parameters by expert id and, where the gate learns, `router`.
    """
    expert = {
        "params": list(groups[expert_id]),
        "lr": phase.learning_rate,
        "weight_decay": phase.weight_decay,
    }
    if "router" not in groups:
        return [expert]
    rate = phase.gate_learning_rate
    return [expert, {"params": list(groups["router"]), "lr": rate, "weight_decay": 0.0}]
