"""The gradient of an update does not depend on how it is cut into forward passes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dylora_moe.errors import TrainingError
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.training.gradient import Task, UpdateGradient
from dylora_moe.training.learnables import Learnables
from dylora_moe.training.memory import MicroBatches, is_out_of_memory
from dylora_moe.training.objective import RouterLossWeights
from dylora_moe.training.phases import Phase
from tests.training.setting import OTHER, OWN, make_model
from tests.training.test_expert import train

PHASE = Phase("one", collaboration=(0.5, 0.5), train_gate=True)
ROWS = tuple(range(8))


def gradients(
    passes: Sequence[tuple[int, ...]],
    phase: Phase = PHASE,
    step: int = 1,
    warnings: list[str] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model, rows, valid, rehearsal = make_model()
    with torch.no_grad():
        for key, parameter in model.experts.parameters_of(OWN).items():
            if "lora_B" in key:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    task = Task(OWN, rows, {"own": valid}, "own", (OTHER,), rehearsal, RouterLossWeights())
    told = warnings if warnings is not None else []
    learnables = Learnables(model, OWN)
    with learnables.learning(phase.train_gate):
        micro = MicroBatches(1 << 20, rows.lengths, told.append, packed=phase.packing)
        maker = UpdateGradient(model, task, phase, 10, 0, micro)
        numbers = maker.make(passes, step)
        found = {
            name: p.grad.clone()
            for name, p in {**learnables.expert, **learnables.gate}.items()
            if p.grad is not None
        }
        others = {
            name
            for name, p in model.named_parameters()
            if p.grad is not None and OWN not in name and not name.startswith("router.")
        }
    assert others == set()
    return numbers, found


def same(a: dict[str, Tensor], b: dict[str, Tensor], atol: float = 1e-5) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name], b[name], atol=atol), name


def test_every_matrix_and_every_gate_parameter_gets_a_gradient() -> None:
    numbers, found = gradients([ROWS])
    assert len(found) == len(make_model()[0].experts.parameters_of(OWN)) + 3
    assert all(bool(gradient.any()) for gradient in found.values())
    assert numbers["grad_norm/router"] > 0


@pytest.mark.parametrize("passes", [[ROWS[:3], ROWS[3:]], [(row,) for row in ROWS]])
def test_the_gradient_is_that_of_the_whole_update(passes: list[tuple[int, ...]]) -> None:
    whole_numbers, whole = gradients([ROWS])
    numbers, found = gradients(passes)
    same(found, whole)
    assert torch.allclose(numbers["loss"], whole_numbers["loss"], atol=1e-5)
    assert torch.equal(numbers["balance_loss"], whole_numbers["balance_loss"])


def test_packed_rows_give_the_gradient_of_padded_ones() -> None:
    padded_numbers, padded = gradients([ROWS])
    numbers, packed = gradients([ROWS], replace(PHASE, packing=True))
    same(packed, padded)
    assert torch.allclose(numbers["loss"], padded_numbers["loss"], atol=1e-5)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_halves_the_pass_and_keeps_the_gradient(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = gradients([ROWS])
    limit(monkeypatch, 3, error)
    warnings: list[str] = []
    _, found = gradients([ROWS], warnings=warnings)
    same(found, whole)
    assert len(warnings) == 2
    tried, left = (int(number) for number in re.findall(r"(\d+) (?:tokens|at the)", warnings[1]))
    assert "(4 rows)" in warnings[1]
    assert left == tried // 2


def test_what_a_failed_update_left_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = gradients([ROWS])
    limit(monkeypatch, 3, MemoryError())
    _, found = gradients([ROWS[:2], ROWS[2:]])
    same(found, whole)


def test_a_row_that_does_not_fit_alone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 0, MemoryError("no more"))
    with pytest.raises(TrainingError, match=r"one row alone.*no more.*max_length"):
        gradients([ROWS])


def test_other_errors_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))
    limit(monkeypatch, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        gradients([ROWS])


def test_a_training_goes_on_where_memory_ran_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = train(make_model(), tmp_path / "a")
    limit(monkeypatch, 2, torch.OutOfMemoryError("out of memory"))
    outcome, memory = train(make_model(), tmp_path / "b")
    assert outcome.best_loss == pytest.approx(expected.best_loss, abs=1e-4)
    assert outcome.phases[-1].pass_tokens < expected.phases[-1].pass_tokens / 2
    assert any("memory ran out" in text for text in memory.series("warning"))


def limit(monkeypatch: pytest.MonkeyPatch, rows: int, error: Exception) -> None:
    """A model whose forward pass takes at most so many rows."""
    original = DyLoRAMoE.forward

    def forward(self: DyLoRAMoE, *args: Any, **kwargs: Any) -> Any:
        if len(kwargs["input_ids"]) > rows:
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DyLoRAMoE, "forward", forward)
