from __future__ import annotations

import pytest
import torch

from dylora_moe.errors import ConfigError, RoutingError
from dylora_moe.experts.gates import Gates, GateSlot, checkpoint_with_gates


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
