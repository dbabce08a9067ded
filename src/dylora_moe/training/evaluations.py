"""What is measured after an epoch: the loss on every evaluation set.

Knows a task and its sets; knows nothing of what becomes of the numbers.
"""

from __future__ import annotations

import math

from dylora_moe.errors import TrainingError
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.training.gradient import Task
from dylora_moe.training.measure import answer_losses
from dylora_moe.training.phases import Phase
from dylora_moe.training.rows import Rows


def evaluation_losses(model: DyLoRAMoE, task: Task, prefix: str = "eval") -> dict[str, float]:
    """The loss on every evaluation set with the expert, and what stands beside it, at weight one,
    as `eval_<set>_loss`; nats, token mean."""
    return {
        f"{prefix}_{name}_loss": _measured(model, task, rows)
        for name, rows in task.evaluation.items()
    }


def check_finite(losses: dict[str, float], phase: Phase, step: int) -> None:
    """Raises TrainingError where a loss is no number."""
    bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
    if bad:
        raise TrainingError(
            f"{phase.name}, step {step}: {', '.join(bad)} not finite; "
            f"lower learning_rate (now {phase.learning_rate:g}) or load the base in fp32"
        )


def _measured(model: DyLoRAMoE, task: Task, rows: Rows) -> float:
    if task.beside:
        return answer_losses(model, rows, gates=task.summed(len(rows), model.device)).mean
    return answer_losses(model, rows, expert=task.expert_id).mean
