"""Elastic weight consolidation holds what mattered, and only that."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dylora_moe.evaluation.continual.arms.ewc import Anchors, fisher_of
from tests.training.setting import OTHER, make_model


def weights(*values: float) -> dict[str, nn.Parameter]:
    return {"a": nn.Parameter(torch.tensor(values))}


def test_the_penalty_is_zero_at_the_anchor_and_its_gradient_pulls_back() -> None:
    anchors, at = Anchors(strength=2.0), weights(1.0, -2.0, 3.0)
    assert anchors.value(at).item() == 0.0
    anchors.add(at, {"a": torch.tensor([1.0, 4.0, 0.0])})
    assert anchors.value(at).item() == 0.0
    moved = weights(1.5, -2.5, 9.0)
    value = anchors.value(moved)
    assert value.item() == pytest.approx(0.5 * 2.0 * (1.0 * 0.25 + 4.0 * 0.25))
    value.backward()
    # Towards the anchor, more where more mattered, and not at all where nothing did.
    assert moved["a"].grad is not None
    assert moved["a"].grad.tolist() == pytest.approx([1.0, -4.0, 0.0])


def test_several_visits_pull_as_the_sum_of_their_penalties() -> None:
    fishers = [torch.tensor([1.0, 0.0, 2.0]), torch.tensor([3.0, 5.0, 0.0])]
    points = [weights(1.0, 1.0, 1.0), weights(-1.0, 2.0, 0.5)]
    anchors = Anchors(strength=3.0)
    for point, fisher in zip(points, fishers, strict=True):
        anchors.add(point, {"a": fisher})
    here, there = weights(0.3, 0.4, 0.5), weights(0.3, 0.4, 0.5)
    anchors.value(here).backward()
    parts = [
        (fisher * (there["a"] - point["a"].detach()).square()).sum()
        for point, fisher in zip(points, fishers, strict=True)
    ]
    (0.5 * 3.0 * torch.stack(parts).sum()).backward()
    assert here["a"].grad is not None
    assert there["a"].grad is not None
    assert torch.allclose(here["a"].grad, there["a"].grad)


def test_an_anchor_does_not_move_with_the_weights_it_was_taken_of() -> None:
    anchors, at = Anchors(), weights(1.0)
    anchors.add(at, {"a": torch.ones(1)})
    with torch.no_grad():
        at["a"].add_(2.0)
    assert anchors.value(at).item() > 0


def test_the_name_tells_anchors_apart() -> None:
    first, second = Anchors(), Anchors()
    first.add(weights(1.0), {"a": torch.ones(1)})
    second.add(weights(1.5), {"a": torch.ones(1)})
    assert first.name != second.name
    assert first.name.split()[0] == "ewc"


def test_the_fisher_information_is_the_mean_squared_gradient_of_the_rows() -> None:
    model, rows, _, _ = make_model()
    found = fisher_of(model, OTHER, rows, only=[0, 3, 5])
    parameters = model.experts.parameters_of(OTHER)
    model.experts.set_trainable([OTHER])
    expected: dict[str, Tensor] = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for row in (0, 3, 5):
        batch, _ = rows.batch([row], pad_id=0, device=model.device)
        # From the tokens, through the trunk: another way than the cached states.
        logits = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], expert=OTHER
        ).logits[0, :-1]
        labels = batch["labels"][0, 1:]
        loss = nn.functional.cross_entropy(logits.float(), labels, ignore_index=-100)
        model.zero_grad()
        loss.backward()
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            expected[name] += parameter.grad.square() / 3
    assert found.keys() == expected.keys()
    for name in found:
        assert torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-9), name
    assert any(bool(value.any()) for value in found.values())


def test_measuring_the_fisher_information_leaves_nothing_learning() -> None:
    model, rows, _, _ = make_model()
    fisher_of(model, OTHER, rows, only=[0])
    assert model.experts.trainable == frozenset()
    assert all(p.grad is None for p in model.parameters())
