"""What teachers say of the rows that an expert trains on, asked once: they and the rows are frozen.

Towards mature neighbours it is distillation (Hinton, Vinyals and Dean 2015); towards what the
expert itself was before it got more data, learning without forgetting (Li and Hoiem 2016). Knows a
model, its router and rows; the loss is the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dylora_moe.errors import TrainingError
from dylora_moe.model.distillation import Distillation, TeacherTargets, joined
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.text.batching import length_grouped
from dylora_moe.training.memory import is_out_of_memory, release
from dylora_moe.training.objective import mixture_gates
from dylora_moe.training.rows import Rows
from dylora_moe.training.updates import halved, pass_tokens

_PASS_TOKENS = 2048
"""Padded tokens of a teacher's pass; a longer row goes alone."""


@dataclass(frozen=True, eq=False)
class Lessons:
    """What the teachers say of each training row, on the CPU: 390 bytes a trained token.

    Attributes:
        rows: in the order of the training rows.
    """

    rows: tuple[TeacherTargets, ...]

    def of(
        self, rows: Sequence[int], coefficient: float, device: torch.device
    ) -> Distillation | None:
        """The term of the loss of a pass over some rows; none at a coefficient of 0.

        Args:
            rows: in the order of the batch.
            coefficient: of the divergence.
            device: where the model computes.
        """
        if not coefficient:
            return None
        return Distillation(joined([self.rows[row] for row in rows]).to(device), coefficient)


@torch.no_grad()
def lessons_of(
    model: DyLoRAMoE, rows: Rows, teachers: Sequence[str], temperature: float
) -> Lessons:
    """Asks the teachers, in a pass over all rows that starts at the tap.

    Args:
        model: with the teachers; put into eval mode.
        rows: to learn from.
        teachers: one expert at weight one, or several as the router weighs them among themselves.
        temperature: of what they say.

    Raises:
        TrainingError: the router has no row for one of several, or memory does not take one row.
    """
    model.train(False)
    found: dict[int, TeacherTargets] = {}
    lengths = rows.lengths
    waiting = length_grouped(lengths, max_tokens=max(_PASS_TOKENS, *lengths))
    while waiting:
        group = waiting.pop()
        try:
            said = _said(model, rows, group, teachers, temperature)
            found.update(zip(group, said, strict=True))
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if len(group) == 1:
            raise TrainingError(
                "one row alone does not fit into memory; shorten the rows (max_length)"
            )
        release()
        waiting += halved(group, lengths, pass_tokens(group, lengths) // 2)
    return Lessons(tuple(found[row] for row in range(len(rows))))


def _said(
    model: DyLoRAMoE, rows: Rows, group: list[int], teachers: Sequence[str], temperature: float
) -> list[TeacherTargets]:
    pad_id = model.base.tokenizer.pad_token_id
    batch, trunk = rows.batch(group, pad_id=pad_id, device=model.device)
    first, *others = teachers
    features = model.passes.features(trunk, batch) if others else trunk.features
    gates = mixture_gates(model.router, features, first, others, 1.0)
    output = model(**batch, trunk=trunk, gates=gates, loss_only=True, teaches_at=temperature)
    return list(output.taught.to("cpu").split([rows.targets[row] for row in group]))
