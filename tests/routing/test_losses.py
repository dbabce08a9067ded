"""Laws of the auxiliary losses."""

from __future__ import annotations

import torch

from dylora_moe.routing.losses import balance_loss, entropy_loss, z_loss


def test_balance_is_one_when_even_and_the_number_of_experts_when_collapsed() -> None:
    even = torch.eye(4).repeat(3, 1)
    torch.testing.assert_close(balance_loss(even), torch.tensor(1.0))
    collapsed = torch.eye(4)[:1].repeat(12, 1)
    torch.testing.assert_close(balance_loss(collapsed), torch.tensor(4.0))


def test_padding_counts_in_no_loss() -> None:
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    other = torch.where(mask[..., None], logits, logits + 7 * torch.randn(3))
    for loss in (balance_loss, entropy_loss):
        torch.testing.assert_close(loss(logits.softmax(-1), mask), loss(other.softmax(-1), mask))
    torch.testing.assert_close(z_loss(logits, mask), z_loss(other, mask))


def test_losses_of_nothing_are_zero() -> None:
    nobody = torch.zeros(2, 3, requires_grad=True)
    mask = torch.zeros(2, dtype=torch.bool)
    for loss in (balance_loss, entropy_loss, z_loss):
        assert loss(nobody, mask).item() == 0.0
    assert balance_loss(torch.zeros(2, 0)).item() == 0.0


def test_entropy_of_certainty_has_a_finite_gradient() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, 200.0]], requires_grad=True)
    entropy_loss(logits.softmax(-1)).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_z_loss_is_the_mean_square_of_the_log_partition() -> None:
    torch.testing.assert_close(z_loss(torch.zeros(3, 4)), torch.tensor(4.0).log().square())
