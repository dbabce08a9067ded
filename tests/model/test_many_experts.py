"""What experts cost that are owned and not used: nothing, wherever the model is touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dylora_moe.experts import mixture, products
from dylora_moe.experts.gates import Gates
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.model.generation import generate
from tests.model.builders import model_of, padded, prompts

FEW, MANY = 4, 12


class Counted(TorchDispatchMode):
    """Counts every operation that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def step(model: DyLoRAMoE, weights: Tensor, loss_only: bool = True) -> None:
    """A training step of rows that use some of the experts; the first one learns."""
    gates = torch.zeros(len(weights), len(model.experts.names))
    gates[:, : weights.shape[1]] = weights
    model.zero_grad()
    routing = Gates(model.experts.names, gates)
    model(**padded(), gates=routing, loss_only=loss_only).loss.backward()


MIXED = {
    "all rows on the same two": torch.full((3, 2), 0.5),
    "each row on one of its own": torch.eye(3),
}


@pytest.mark.parametrize("weights", MIXED.values(), ids=MIXED.keys())
def test_a_training_step_asks_for_the_same_operations_however_many_are_owned(
    weights: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss and the gradient of the expert that learns are the same too, bit for bit."""
    stacked: list[int] = []

    def counted(of: Callable[..., Any]) -> Callable[..., Any]:
        def made(matrices: tuple[Tensor, ...], dtype: torch.dtype) -> Any:
            stacked.append(len(matrices) // 2)
            return of(matrices, dtype)

        return made

    for module in (mixture, products):
        monkeypatch.setattr(module, "stack", counted(products.stack))
    monkeypatch.setattr(mixture, "pile", counted(products.pile))
    found = []
    for count in (FEW, MANY):
        model = model_of(experts=count)
        model.experts.set_trainable(["expert_0"])
        model.train()
        step(model, weights)
        stacked.clear()
        with Counted() as counts:
            step(model, weights)
        gradients = [p.grad for p in model.experts.trainable_parameters("expert_0")]
        found.append((counts.found, set(stacked), gradients))
    (few, few_stacked, few_grads), (many, many_stacked, many_grads) = found
    assert few == many
    assert few_stacked == many_stacked == {weights.shape[1]}
    for ours, theirs in zip(many_grads, few_grads, strict=True):
        assert bool(ours.any())
        assert torch.equal(ours, theirs)


def test_switching_the_mode_walks_through_no_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk through 256 experts' modules takes longer than a decode step, twice an answer."""
    visits: list[int] = []
    original = nn.Module.train

    def counted(self: nn.Module, mode: bool = True) -> nn.Module:
        visits[-1] += 1
        return original(self, mode)

    few, many = model_of(experts=FEW), model_of(experts=MANY)
    monkeypatch.setattr(nn.Module, "train", counted)
    for model in (few, many):
        visits.append(0)
        model.train()
        model.eval()
        ids, mask = prompts()
        generate(model, ids, mask, max_new_tokens=1, do_sample=False)
    assert visits[0] == visits[1]


def test_whatever_comes_while_the_model_trains_is_in_eval_mode_but_for_a_learner_s_dropout(
    tmp_path: Path,
) -> None:
    model = model_of()
    experts = model.experts
    experts.save("expert_0", tmp_path)

    def check(training: bool) -> None:
        for name, module in model.model.named_modules():
            drops = isinstance(module, nn.Dropout) and name.endswith("dropout.expert_new")
            assert module.training == (training and drops), name

    for training in (True, False):
        model.train(training)
        experts.create_expert("expert_new", dropout=0.5)
        experts.set_trainable({"expert_new"})
        check(training)
        experts.grow_rank("expert_new", 16)
        check(training)
        experts.load("expert_read", tmp_path)
        experts.offload("expert_1")
        experts.touch(["expert_1"])
        check(training)
        model.train(not training)
        check(not training)
        experts.remove("expert_new")
        experts.remove("expert_read")


def test_who_comes_with_layers_of_its_own_leaves_a_learner_s_dropout_on() -> None:
    model = model_of()
    model.experts.create_expert("expert_wet", targets="attention", dropout=0.5)
    model.experts.set_trainable({"expert_wet"})
    model.train()
    # PEFT makes the layers that only this one has.
    model.experts.create_expert("expert_wide", targets="all-linear")
    wet = [m for n, m in model.model.named_modules() if n.endswith("dropout.expert_wet")]
    assert wet
    assert all(module.training for module in wet)


def test_a_base_that_somebody_set_to_train_is_put_back() -> None:
    model = model_of()
    model.model.train()
    model.eval()
    assert not any(module.training for module in model.modules())
