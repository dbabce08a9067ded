"""An expert goes towards its teachers in the phases that say so, and in no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dylora_moe.errors import TrainingError
from dylora_moe.experts.gates import Gates
from dylora_moe.model.distillation import TOP
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.training import distilling
from dylora_moe.training.distilling import lessons_of
from dylora_moe.training.gradient import Task, UpdateGradient
from dylora_moe.training.learnables import Learnables
from dylora_moe.training.memory import MicroBatches
from dylora_moe.training.objective import RouterLossWeights, dense_weights
from dylora_moe.training.phases import Phase
from dylora_moe.training.rows import Rows
from tests.training.setting import OTHER, OWN, make_model, two_phases
from tests.training.test_expert import train

PHASE = Phase("one", collaboration=(0.0, 0.0), distillation=0.5)
ROWS = tuple(range(8))


@pytest.fixture(autouse=True)
def _never_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dylora_moe.training.gradient.MAX_NORM", 1e6)


def begun() -> tuple[DyLoRAMoE, Rows, Rows]:
    """A model whose second expert has learned something too."""
    model, rows, valid, _ = make_model()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, matrix in model.experts.parameters_of(OWN).items():
            if "lora_B" in key:
                matrix.normal_(std=0.05, generator=generator)
    return model, rows, valid


def update(
    phase: Phase, passes: Sequence[tuple[int, ...]], teachers: Sequence[str] = (OTHER,)
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The numbers of one update and its gradients."""
    model, rows, valid = begun()
    task = Task(OWN, rows, {"own": valid}, "own", (), None, RouterLossWeights())
    if teachers:
        task = replace(task, lessons=lessons_of(model, rows, teachers, 2.0))
    learnables = Learnables(model, OWN)
    with learnables.learning(train_gate=False):
        micro = MicroBatches(1 << 20, rows.lengths, lambda _: None, packed=phase.packing)
        numbers = UpdateGradient(model, task, phase, 10, 0, micro).make(passes, 0)
        grads = {n: p.grad.clone() for n, p in learnables.expert.items() if p.grad is not None}
    return numbers, grads


def by_autograd() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Answer loss, divergence and gradient from the full logits of both, in fp32."""
    model, rows, _ = begun()
    batch, trunk = rows.batch(ROWS, pad_id=0, device=model.device)
    with torch.no_grad():
        teacher = model(**batch, trunk=trunk, expert=OTHER, trained_logits_only=True).logits
    learnables = Learnables(model, OWN)
    with learnables.learning(train_gate=False):
        output = model(**batch, trunk=trunk, expert=OWN, trained_logits_only=True)
        p, q = (torch.softmax(each.float() / 2.0, -1) for each in (teacher, output.logits))
        kept = p.topk(TOP, -1).indices
        p, q = (
            torch.cat([x.gather(1, kept), 1 - x.gather(1, kept).sum(1, keepdim=True)], 1)
            for x in (p, q)
        )
        apart = 4.0 * functional.kl_div(q.log(), p, reduction="sum") / len(p)
        (output.loss + 0.5 * apart).backward()
        grads = {n: p.grad.clone() for n, p in learnables.expert.items() if p.grad is not None}
    return output.loss.detach(), apart.detach(), grads


@pytest.mark.parametrize(
    ("passes", "packing"),
    [([ROWS], False), ([ROWS], True), ([ROWS[:3], ROWS[3:]], False), ([(r,) for r in ROWS], True)],
)
def test_an_update_s_gradient_is_autograd_s_on_full_logits_however_it_is_cut(
    passes: Sequence[tuple[int, ...]], packing: bool
) -> None:
    loss, apart, expected = by_autograd()
    numbers, found = update(replace(PHASE, packing=packing), passes)
    assert numbers["loss"].item() == pytest.approx(loss.item(), abs=1e-4)
    assert numbers["distillation_loss"].item() == pytest.approx(apart.item(), abs=1e-4)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-5, rtol=1e-3), name


def test_at_a_coefficient_of_0_a_training_is_the_one_without_bit_for_bit(tmp_path: Path) -> None:
    results = []
    for teachers in ([], [OTHER]):
        parts = make_model(dropout=0.2)
        outcome, memory = train(parts, tmp_path / str(len(teachers)), teachers=teachers)
        results.append((outcome.best_loss, parts[0].experts.state(OWN)))
        assert "distillation_loss" not in memory.names()
    (loss, weights), (other, others) = results
    assert loss == other
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    numbers, plain = update(replace(PHASE, distillation=0.0), [ROWS])
    alone, same = update(PHASE, [ROWS], teachers=())
    assert numbers.keys() == alone.keys()
    assert all(torch.equal(plain[name], same[name]) for name in plain)


def test_an_expert_goes_towards_its_teacher(tmp_path: Path) -> None:
    apart = []
    for coefficient in (0.0, 5.0):
        model, rows, *_ = parts = make_model()
        said = lessons_of(model, rows, [OTHER], 2.0)
        phases = [Phase("one", epochs=6.0, patience=99, distillation=coefficient)]
        train(parts, tmp_path / str(coefficient), phases=phases, teachers=[OTHER], neighbours=[])
        batch, trunk = rows.batch(ROWS, pad_id=0, device=model.device)
        term = said.of(ROWS, 1.0, model.device)
        with torch.no_grad():
            output = model(**batch, trunk=trunk, expert=OWN, loss_only=True, distillation=term)
        apart.append(float(output.divergence))
    assert apart[1] < 0.7 * apart[0]


def test_several_teachers_are_weighed_as_the_router_weighs_them() -> None:
    model, rows, _ = begun()
    found = lessons_of(model, rows, [OTHER, OWN], 2.0)
    weights = dense_weights(model.router, rows.features, (OTHER, OWN))
    batch, trunk = rows.batch([3], pad_id=0, device=model.device)
    with torch.no_grad():
        expected = model(
            **batch,
            trunk=trunk,
            gates=Gates((OTHER, OWN), weights[3:4]),
            loss_only=True,
            teaches_at=2.0,
        ).taught
    assert torch.equal(found.rows[3].tokens, expected.tokens)
    assert torch.allclose(found.rows[3].probabilities, expected.probabilities, atol=1e-5)


def distilling_phases() -> Sequence[Phase]:
    return two_phases(distillation=0.5)


@pytest.mark.parametrize("teacher", [OTHER, OWN], ids=["neighbour", "itself"])
def test_a_resumed_run_that_distils_equals_an_uninterrupted_one(
    tmp_path: Path, teacher: str
) -> None:
    options: dict[str, Any] = {"phases": distilling_phases(), "teachers": [teacher]}
    whole = make_model(dropout=0.2)
    expected, memory = train(whole, tmp_path / "whole", **options)
    assert "distillation_loss" in memory.names()
    steps = 0

    def interrupt(done: int, total: int, values: Mapping[str, Any]) -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make_model(dropout=0.2), tmp_path / "parts", on_progress=interrupt, **options)
    again = make_model(dropout=0.2)
    outcome, _ = train(again, tmp_path / "parts", **options)
    assert outcome.resumed
    assert outcome.best_loss == expected.best_loss
    for name, value in whole[0].experts.state(OWN).items():
        assert torch.equal(value, again[0].experts.state(OWN)[name])


def test_other_teachers_or_another_temperature_make_another_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"phases": distilling_phases(), "teachers": [OTHER]}
    train(make_model(), tmp_path, **options)
    assert train(make_model(), tmp_path, **options)[0].resumed
    assert not train(make_model(), tmp_path, **{**options, "teachers": [OWN]})[0].resumed
    assert not train(make_model(), tmp_path, temperature=1.0, **options)[0].resumed


def test_memory_that_runs_out_halves_the_teachers_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows, _ = begun()
    expected = lessons_of(model, rows, [OTHER], 2.0)
    original, room = distilling._said, 3

    def said(model: DyLoRAMoE, rows: Rows, group: list[int], *rest: Any) -> Any:
        if len(group) > room:
            raise MemoryError
        return original(model, rows, group, *rest)

    monkeypatch.setattr(distilling, "_said", said)
    found = lessons_of(model, rows, [OTHER], 2.0)
    for ours, theirs in zip(found.rows, expected.rows, strict=True):
        assert torch.allclose(ours.probabilities, theirs.probabilities, atol=1e-5)
    room = 0
    with pytest.raises(TrainingError, match="one row alone"):
        lessons_of(model, rows, [OTHER], 2.0)
