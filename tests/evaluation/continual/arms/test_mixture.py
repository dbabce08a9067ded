"""Experts summed by a gate's softmax: both learn, and the gradient is that of the whole update."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dylora_moe.evaluation.continual.arms.choosers import Standard
from dylora_moe.evaluation.continual.arms.lora_learner import LoraLearner, phase_of
from dylora_moe.evaluation.continual.arms.mixture import Mixture
from dylora_moe.experts.gates import Gates
from dylora_moe.training.measure import answer_losses
from dylora_moe.training.rows import Rows
from tests.evaluation.continual.arms.tiny_setting import setting
from tests.pools import LETTERS, rows


def made(folder: Path, count: int = 3) -> tuple[Mixture, Rows]:
    learner = LoraLearner(setting(folder))
    found = learner.encode(rows(LETTERS, 12, 0))
    mixture = Mixture(learner, count, Standard.of(found.features), 0)
    learner.experts.set_trainable(mixture.experts)
    return mixture, found


def gradients(mixture: Mixture) -> list[torch.Tensor | None]:
    groups = mixture.optimizer(phase_of(mixture.learner._setting, 1.0)).param_groups
    return [None if p.grad is None else p.grad.clone() for g in groups for p in g["params"]]


def moved(mixture: Mixture) -> None:
    """B no longer zero, so that every part has a gradient."""
    for number, name in enumerate(mixture.experts):
        for key, parameter in mixture.learner.experts.parameters_of(name).items():
            if "lora_B" in key:
                with torch.no_grad():
                    parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(number))


def test_every_row_s_weights_are_a_softmax_over_all_experts(tmp_path: Path) -> None:
    mixture, found = made(tmp_path)
    gates = mixture.gates(found)
    assert gates.experts == ("expert_1", "expert_2", "expert_3")
    assert gates.weights.sum(-1).tolist() == pytest.approx([1.0] * 12)
    assert bool((gates.weights > 0).all())


def test_experts_begin_apart_and_change_nothing_yet(tmp_path: Path) -> None:
    mixture, found = made(tmp_path)
    one, two = (mixture.learner.experts.state(name) for name in mixture.experts[:2])
    assert not any(torch.equal(one[key], two[key]) for key in one if "lora_A" in key)
    model = mixture.learner.model
    base = answer_losses(model, found, expert="base").mean
    assert answer_losses(model, found, gates=mixture.gates(found)).mean == pytest.approx(base)


def test_the_task_s_loss_reaches_every_expert_and_the_gate(tmp_path: Path) -> None:
    mixture, found = made(tmp_path)
    moved(mixture)
    mixture.backward(found, [(0, 1, 2), (3, 4)], balance=0.0)
    assert all(g is not None and bool(g.any()) for g in gradients(mixture))


def test_the_gradient_does_not_depend_on_how_an_update_is_cut(tmp_path: Path) -> None:
    parts = []
    for number, passes in enumerate(([(0, 1, 2, 3)], [(0, 3), (1,), (2,)])):
        mixture, found = made(tmp_path / str(number))
        moved(mixture)
        mixture.backward(found, passes, balance=0.5)
        parts.append(gradients(mixture))
    for one, two in zip(*parts, strict=True):
        assert one is not None
        assert two is not None
        assert torch.allclose(one, two, atol=1e-5)


def test_the_balance_loss_moves_the_gate_and_no_expert(tmp_path: Path) -> None:
    found: dict[float, list[torch.Tensor | None]] = {}
    for balance in (0.0, 1.0):
        mixture, taught = made(tmp_path / str(balance))
        moved(mixture)
        mixture.backward(taught, [(0, 1, 2)], balance)
        found[balance] = gradients(mixture)
    same = [
        torch.equal(one, two)
        for one, two in zip(found[0.0], found[1.0], strict=True)
        if one is not None and two is not None
    ]
    # Weight and bias of the gate are the last two.
    assert all(same[:-2])
    assert not any(same[-2:])


def test_what_was_copied_is_put_back(tmp_path: Path) -> None:
    mixture, found = made(tmp_path)
    moved(mixture)
    before, kept = mixture.gates(found), mixture.copy()
    losses = answer_losses(mixture.learner.model, found, gates=before)
    optimizer = mixture.optimizer(phase_of(mixture.learner._setting, 1.0))
    mixture.backward(found, [(0, 1, 2, 3)], balance=0.1)
    optimizer.step()
    assert not torch.equal(mixture.gates(found).weights, before.weights)
    mixture.load(kept)
    again = mixture.gates(found)
    assert torch.equal(again.weights, before.weights)
    restored = answer_losses(mixture.learner.model, found, gates=again)
    assert torch.equal(restored.total, losses.total)
    alone = Gates.only("expert_1", len(found))
    assert answer_losses(mixture.learner.model, found, gates=alone).mean != losses.mean
