from __future__ import annotations

import torch

from dylora_moe.model.head import losses_of_logits
from dylora_moe.model.loss import summed_up, trained_positions


def test_each_target_is_predicted_by_the_position_before_it() -> None:
    labels = torch.tensor([[-100, -100, 7, 8], [-100, 9, -100, -100]])
    found = trained_positions(labels)
    assert found.mask.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert found.targets.tolist() == [7, 8, 9]
    assert found.rows.tolist() == [0, 0, 1]


def test_a_segments_first_token_is_no_target_of_its_neighbour() -> None:
    labels = torch.tensor([[5, 6, 7, 8]])
    found = trained_positions(labels, torch.tensor([[0, 0, 1, 1]]))
    assert found.targets.tolist() == [6, 8]
    assert found.rows.tolist() == [0, 1]
    assert found.n_rows == 2


def test_a_row_without_targets_has_no_loss_and_changes_no_mean() -> None:
    labels = torch.tensor([[-100, 1, 2], [-100, -100, -100]])
    positions = trained_positions(labels)
    logits = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
    losses = losses_of_logits(logits, positions.targets).losses
    loss = summed_up(losses, positions)
    assert loss.row_tokens.tolist() == [2, 0]
    assert loss.row_means[1] == 0
    assert torch.equal(loss.row_means[0], loss.mean)
    assert torch.equal(summed_up(losses, positions, 4).mean * 2, loss.mean)
