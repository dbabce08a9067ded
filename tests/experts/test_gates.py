from __future__ import annotations

import pytest
import torch

from dylora_moe.errors import ConfigError, RoutingError
from dylora_moe.experts.gates import Gates, GateSlot, checkpoint_with_gates
from dylora_moe.model.passes import gates_of


def test_chosen_keeps_only_experts_that_count_for_some_row() -> None:
    weights = torch.tensor([[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]])
    gates = Gates.chosen(("a", "b", "c"), weights)
    assert gates is not None
    assert gates.experts == ("a", "c")
    assert torch.equal(gates.weights, weights[:, [0, 2]])


def test_no_weight_at_all_means_no_gates() -> None:
    assert Gates.chosen(("a", "b"), torch.zeros(3, 2)) is None
    assert Gates.chosen((), torch.zeros(3, 0)) is None


def test_gradients_reach_the_weights_of_the_chosen() -> None:
    weights = torch.tensor([[0.5, 0.0]], requires_grad=True)
    gates = Gates.chosen(("a", "b"), weights)
    assert gates is not None
    gates.weights.sum().backward()
    assert torch.equal(weights.grad, torch.tensor([[1.0, 0.0]]))


def test_columns_must_fit_the_experts_and_be_named_once() -> None:
    with pytest.raises(RoutingError, match="2 columns"):
        Gates(("a",), torch.ones(1, 2))
    with pytest.raises(RoutingError, match="twice"):
        Gates(("a", "a"), torch.ones(1, 2))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_experts_that_do_not_count_hide_no_mistake(weight: float) -> None:
    with pytest.raises(RoutingError, match="3 columns"):
        Gates.chosen(("a", "b"), torch.tensor([[weight, 0.0, 0.0]]))
    with pytest.raises(RoutingError, match="twice"):
        Gates.chosen(("a", "b", "b"), torch.tensor([[weight, 0.0, 0.0]]))


def test_packed_rows_spread_their_weights_over_their_tokens() -> None:
    gates = Gates(("a",), torch.tensor([[0.25], [0.75]]))
    spread = gates.per_token(torch.tensor([[0, 0, 1]]))
    assert torch.equal(spread.weights, torch.tensor([[[0.25], [0.25], [0.75]]]))
    with pytest.raises(RoutingError, match="per token"):
        spread.per_token(torch.tensor([[0, 0, 1]]))


def test_the_slot_gives_back_what_was_bound_before_also_after_an_error() -> None:
    slot, outer, inner = GateSlot(), Gates.only("a", 1), Gates.only("b", 1)

    def fail() -> None:
        with slot.bound(inner):
            assert slot.current is inner
            raise KeyError

    with slot.bound(outer):
        with pytest.raises(KeyError):
            fail()
        assert slot.current is outer
    assert slot.current is None


def test_reentrant_checkpointing_is_refused() -> None:
    with pytest.raises(ConfigError, match="use_reentrant"):
        checkpoint_with_gates(GateSlot(), use_reentrant=True)


def test_the_recompute_sees_the_gates_of_its_forward_whatever_the_slot_holds_then() -> None:
    slot = GateSlot()
    run = checkpoint_with_gates(slot)

    def block(x: torch.Tensor) -> torch.Tensor:
        assert slot.current is not None
        return (x * slot.current.weights.sum()).sin()

    x = torch.ones(3, requires_grad=True)
    first, second = (Gates(("a",), torch.tensor([[w]], requires_grad=True)) for w in (0.3, 0.9))
    with slot.bound(first):
        y1 = run(block, x)
    with slot.bound(second):
        y2 = run(block, x)
    (y1.sum() + y2.sum()).backward()
    for gates, w in ((first, 0.3), (second, 0.9)):
        assert torch.allclose(gates.weights.grad, 3 * torch.tensor([[w]]).cos())


def test_the_most_experts_of_a_row_are_counted() -> None:
    weights = torch.tensor([[0.0, 0.5, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0]])
    gates = Gates.chosen(("a", "b", "c", "d"), weights)
    assert gates is not None
    assert (gates.experts, gates.most) == (("a", "b", "c"), 2)
    assert gates.repeated(2).most == 2
    assert Gates.only("a", 3).most == 1


def test_picked_are_each_rows_own_experts_with_their_scaling() -> None:
    weights = torch.tensor([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]])
    gates = Gates.chosen(("a", "b", "c"), weights)
    assert gates is not None
    chosen, gate = gates.picked(("c", "a", "b"), (2.0, 1.0, 4.0))
    spread = torch.zeros(2, 3).scatter(1, chosen, gate)
    assert torch.equal(spread, torch.tensor([[1.5, 0.0, 1.0], [0.0, 1.0, 0.0]]))


def test_a_negative_weight_is_picked_before_none() -> None:
    gates = Gates.chosen(("a", "b"), torch.tensor([[-0.5, 0.0], [0.0, 1.0]]))
    assert gates is not None
    assert gates.most == 1
    chosen, gate = gates.picked(("a", "b"), (1.0, 1.0))
    assert torch.equal(chosen, torch.tensor([[0], [1]]))
    assert torch.equal(gate, torch.tensor([[-0.5], [1.0]]))


def test_gates_of_weight_one_go_into_a_pass_as_they_are() -> None:
    gates = Gates.only("a", 2)
    assert gates_of(gates) is gates
    packed = gates_of(gates, torch.tensor([[0, 0, 1]]))
    assert packed is not None
    assert packed.uniform
    assert packed.weights.shape == (1, 3, 1)
    some = gates_of(Gates(("a", "b"), torch.tensor([[1.0, 0.0]])))
    assert some is not None
    assert some.experts == ("a",)
