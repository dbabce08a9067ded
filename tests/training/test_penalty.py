"""A penalty is a term of the loss once an update, however it is cut; what stands beside an expert
is added whole and stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dylora_moe.errors import TrainingError
from dylora_moe.experts.gates import Gates
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.training.expert import train_expert
from dylora_moe.training.gradient import Task, UpdateGradient
from dylora_moe.training.learnables import Learnables
from dylora_moe.training.measure import answer_losses
from dylora_moe.training.memory import MicroBatches
from dylora_moe.training.objective import Penalty, RouterLossWeights
from dylora_moe.training.outcome import TrainingOutcome
from dylora_moe.training.phases import Phase
from tests.training.setting import OTHER, OWN, Memory, make_model
from tests.training.test_expert import Parts

PHASE = Phase("visit", epochs=1.0, learning_rate=5e-3, batch_size=8, collaboration=(0.0, 0.0))
ROWS = tuple(range(8))


def pull(model: DyLoRAMoE, strength: float = 0.01) -> Penalty:
    matrices = model.experts.parameters_of(OWN)

    def value() -> Tensor:
        return strength * torch.stack([m.sum() for m in matrices.values()]).sum()

    return Penalty(f"pull {strength}", value)


def gradients(
    passes: Sequence[tuple[int, ...]], *, penalised: bool, tokens: int = 1000
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The numbers of one update and its gradients."""
    model, rows, valid, _ = make_model()
    task = Task(OWN, rows, {"own": valid}, "own", (), None, RouterLossWeights())
    if penalised:
        task = replace(task, penalty=pull(model, 1e-3))
    learnables = Learnables(model, OWN)
    with learnables.learning(train_gate=False):
        micro = MicroBatches(tokens, rows.lengths, lambda _: None)
        numbers = UpdateGradient(model, task, PHASE, 10, 0, micro).make(passes, 0)
        found = {
            name: p.grad.clone() for name, p in learnables.expert.items() if p.grad is not None
        }
    return numbers, found


@pytest.fixture(autouse=True)
def _never_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dylora_moe.training.gradient.MAX_NORM", 1e6)


@pytest.mark.parametrize("passes", [[ROWS], [ROWS[:3], ROWS[3:]], [(row,) for row in ROWS]])
def test_a_penalty_adds_its_gradient_once_however_the_update_is_cut(
    passes: Sequence[tuple[int, ...]],
) -> None:
    _, plain = gradients([ROWS], penalised=False)
    numbers, found = gradients(passes, penalised=True)
    for name, gradient in plain.items():
        assert torch.allclose(found[name], gradient + 1e-3, atol=1e-6), name
    without, _ = gradients([ROWS], penalised=False)
    assert numbers["loss"].item() == pytest.approx(without["loss"].item(), abs=1e-5)


def test_a_penalty_counts_once_where_memory_halves_the_passes() -> None:
    _, plain = gradients([ROWS], penalised=False)
    _, found = gradients([ROWS], penalised=True, tokens=30)
    for name, gradient in plain.items():
        assert torch.allclose(found[name], gradient + 1e-3, atol=1e-6), name


def test_a_penalty_is_logged_by_the_first_word_of_its_name(tmp_path: Path) -> None:
    model, *_ = parts = make_model()
    _, memory = train(parts, tmp_path, penalty=pull(model))
    logged = memory.series("pull_loss")
    assert logged
    assert len(logged) == len(memory.series("grad_norm/" + OWN))


def test_a_run_with_another_penalty_is_another_run(tmp_path: Path) -> None:
    first = make_model()
    train(first, tmp_path, penalty=pull(first[0], 0.01))
    same = make_model()
    outcome, _ = train(same, tmp_path, penalty=pull(same[0], 0.01))
    assert outcome.resumed
    other = make_model()
    outcome, _ = train(other, tmp_path, penalty=pull(other[0], 0.02))
    assert not outcome.resumed


def test_a_penalty_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    model, *_ = parts = make_model()
    broken = Penalty("pull", lambda: pull(model).value() * float("inf"))
    with pytest.raises(TrainingError, match="pull_loss is"):
        train(parts, tmp_path, penalty=broken)


def test_what_stands_beside_an_expert_is_in_its_loss_and_stays_as_it_was(tmp_path: Path) -> None:
    model, _, valid, _ = parts = make_model()
    before = model.experts.state(OTHER)
    start = answer_losses(model, valid, expert=OTHER).mean
    outcome, _ = train(parts, tmp_path, beside=[OTHER])
    after = model.experts.state(OTHER)
    assert all(torch.equal(before[name], after[name]) for name in before)
    # A fresh expert adds nothing, so that the sum begins as what stands beside it.
    assert outcome.start_loss == pytest.approx(start, abs=1e-6)
    both = answer_losses(model, valid, gates=Gates.all_of([OWN, OTHER], len(valid))).mean
    assert outcome.best_loss == pytest.approx(both, abs=1e-6)
    assert outcome.best_loss < start


def test_an_update_s_loss_is_that_of_the_sum(tmp_path: Path) -> None:
    model, rows, valid, _ = make_model()
    torch.manual_seed(1)
    with torch.no_grad():
        for key, matrix in model.experts.parameters_of(OWN).items():
            if "lora_B" in key:
                matrix.normal_(std=0.05)
    task = Task(OWN, rows, {"own": valid}, "own", (), None, RouterLossWeights(), (OTHER,))
    with Learnables(model, OWN).learning(train_gate=False):
        micro = MicroBatches(1000, rows.lengths, lambda _: None)
        maker = UpdateGradient(model, task, PHASE, 10, 0, micro)
        loss, without = maker.make([ROWS], 0)["loss"].item(), maker.base_loss([ROWS])
    both = answer_losses(model, rows, gates=Gates.all_of([OWN, OTHER], len(rows)), only=ROWS)
    beside = answer_losses(model, rows, expert=OTHER, only=ROWS)
    assert loss == pytest.approx(both.mean, abs=1e-5)
    assert without == pytest.approx(beside.mean, abs=1e-5)
    assert abs(loss - without) > 1e-3


def test_who_stands_beside_makes_another_run(tmp_path: Path) -> None:
    train(make_model(), tmp_path)
    assert train(make_model(), tmp_path)[0].resumed
    assert not train(make_model(), tmp_path, beside=[OTHER])[0].resumed


def test_an_expert_stands_beside_others_and_not_beside_itself(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="beside it, are other experts"):
        train(make_model(), tmp_path, beside=[OWN])
    with pytest.raises(TrainingError, match="beside it, are other experts"):
        train(make_model(), tmp_path, beside=["expert_9"])
    with pytest.raises(TrainingError, match="give one of them"):
        train(make_model(), tmp_path, beside=[OTHER], neighbours=[OTHER])


def train(parts: Parts, folder: Path, **changes: Any) -> tuple[TrainingOutcome, Memory]:
    model, rows, valid, _ = parts
    memory = Memory()
    arguments: dict[str, Any] = {
        "train": rows,
        "evaluation": {"own": valid},
        "target": "own",
        "phases": [PHASE],
        "folder": folder,
        "reporter": memory,
    }
    return train_expert(model, OWN, **(arguments | changes)), memory
