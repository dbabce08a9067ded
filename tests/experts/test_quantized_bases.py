"""Laws of experts on a quantised base: what they add, what they leave, and that they learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dylora_moe.experts.gates import Gates
from dylora_moe.experts.manager import ExpertManager
from dylora_moe.experts.mixture import MixtureLinear
from tests.experts.builders import ids, logits, scramble
from tests.foundation.test_quantized import FORMS, quantized_base

FAMILY = ("llama", "gpt2")
NAME = "expert_1"


def manager_on(form: str | None, family: str = "llama") -> ExpertManager:
    base = quantized_base(form, family)
    return ExpertManager(base.model, base.anatomy, base_name="tiny")


def with_expert(form: str | None, family: str = "llama") -> ExpertManager:
    manager = manager_on(form, family)
    manager.create_expert(NAME, rank=4, alpha=8.0)
    scramble(manager, NAME)
    return manager


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILY)
def test_one_expert_is_the_quantised_layer_and_its_lora_delta(family: str, form: str) -> None:
    manager = with_expert(form, family)
    adapted = [m for m in manager.model.modules() if isinstance(m, MixtureLinear)]
    assert adapted
    for layer in adapted:
        for rows in (3, 40):
            x = torch.randn(1, rows, layer.in_features)
            with torch.no_grad(), manager.slot.bound(Gates.only(NAME, 1)):
                got = layer(x)
                down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
                wanted = layer.base_layer(x) + x @ down.T @ up.T * layer.scaling[NAME]
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILY)
def test_no_expert_is_the_quantised_base_bit_for_bit(family: str, form: str) -> None:
    alone = logits(manager_on(form, family), None)
    manager = with_expert(form, family)
    assert torch.equal(logits(manager, None), alone)
    assert not torch.equal(logits(manager, Gates.only(NAME, 2)), alone)
    manager.unload()
    assert torch.equal(logits(manager, None), alone)


def gradients(manager: ExpertManager) -> dict[str, Tensor]:
    manager.set_active_expert(NAME)
    tokens = ids(2, 20)
    with manager.slot.bound(Gates.only(NAME, 2)):
        manager.model(tokens, labels=tokens, use_cache=False).loss.backward()
    found = {}
    for name, parameter in manager.parameters_of(NAME).items():
        assert parameter.grad is not None, name
        found[name] = parameter.grad
    return found


@pytest.mark.parametrize("form", FORMS)
def test_after_an_eval_pass_every_matrix_still_gets_the_whole_gradient(form: str) -> None:
    """A layer that loses its input's gradient leaves the lower experts that of the residual."""
    fresh = gradients(with_expert(form))
    used = with_expert(form)
    used.model.eval()
    logits(used, None)
    logits(used, None, ids(1, 1))
    after = gradients(used)
    for name, gradient in fresh.items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(after[name], gradient), name


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_is_that_of_the_loss(form: str) -> None:
    manager = with_expert(form)
    tokens = ids(2, 20)
    slopes = gradients(manager)
    generator = torch.Generator().manual_seed(1)
    state = manager.state(NAME)
    way = {n: torch.randn(v.shape, generator=generator) * 0.3 for n, v in state.items()}

    def loss(step: float) -> float:
        manager.restore(NAME, {n: value + step * way[n] for n, value in state.items()})
        with torch.no_grad(), manager.slot.bound(Gates.only(NAME, 2)):
            return float(manager.model(tokens, labels=tokens, use_cache=False).loss.double())

    measured = (loss(3e-3) - loss(-3e-3)) / 6e-3
    told = sum(float((slopes[name] * way[name]).sum()) for name in way)
    assert told == pytest.approx(measured, rel=0.05, abs=2e-2)


@pytest.mark.parametrize("form", FORMS)
def test_an_expert_comes_back_from_its_files(form: str, tmp_path: Path) -> None:
    manager = with_expert(form)
    before = logits(manager, Gates.only(NAME, 2))
    manager.save(NAME, tmp_path)
    again = manager_on(form)
    again.load("expert_9", tmp_path)
    assert torch.equal(logits(again, Gates.only("expert_9", 2)), before)


@pytest.mark.parametrize("form", FORMS)
def test_its_files_are_those_of_an_expert_on_the_stock_base(form: str, tmp_path: Path) -> None:
    """And those stock PEFT reads (`test_manager`)."""
    for name in (form, None):
        with_expert(name).save(NAME, tmp_path / str(name))
    files = {path.name: path.read_bytes() for path in (tmp_path / form).iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "None").iterdir()}
    assert files


@pytest.mark.parametrize("form", FORMS)
def test_a_few_steps_reduce_the_loss(form: str) -> None:
    manager = manager_on(form)
    manager.create_expert(NAME, rank=4, alpha=8.0)
    manager.set_active_expert(NAME)
    optimizer = torch.optim.AdamW(manager.trainable_parameters(NAME), lr=2e-2)
    tokens = ids(4, 16)
    losses = []
    for _ in range(12):
        with manager.slot.bound(Gates.only(NAME, 4)):
            loss = manager.model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("form", FORMS)
def test_an_expert_starts_from_a_neighbour_and_grows(form: str) -> None:
    manager = with_expert(form)
    before = logits(manager, Gates.only(NAME, 2))
    manager.create_expert("expert_2", rank=4, alpha=8.0, start_from={NAME: 1.0})
    manager.grow_rank("expert_2", 6)
    torch.testing.assert_close(
        logits(manager, Gates.only("expert_2", 2)), before, atol=1e-4, rtol=1e-4
    )
