"""Draws follow the probabilities, within what is asked for, and repeat by their seed."""

from __future__ import annotations

import pytest
import torch

from dylora_moe.serving.engine.sampling import Draws

CPU = torch.device("cpu")


def test_draws_follow_the_tempered_probabilities() -> None:
    logits = torch.tensor([1.0, 2.0, 0.0, -3.0])
    for temperature in (0.5, 1.0, 2.0):
        draws = Draws(temperature, 1.0, 0, 7, CPU)
        found = torch.bincount(torch.tensor([draws.pick(logits) for _ in range(4000)]), minlength=4)
        assert torch.allclose(found / 4000, (logits / temperature).softmax(0), atol=0.03)


@pytest.mark.parametrize(
    ("top_p", "top_k", "allowed"),
    [(0.5, 0, {0}), (0.85, 0, {0, 1}), (1.0, 3, {0, 1, 2}), (0.9, 2, {0, 1}), (0.999, 1, {0})],
)
def test_only_the_likeliest_are_drawn(top_p: float, top_k: int, allowed: set[int]) -> None:
    logits = torch.tensor([0.6, 0.25, 0.1, 0.05]).log()
    draws = Draws(1.0, top_p, top_k, 3, CPU)
    assert {draws.pick(logits) for _ in range(400)} == allowed


def test_a_flat_distribution_is_not_cut_off_at_the_first_candidates() -> None:
    logits = torch.zeros(5000)
    draws = Draws(1.0, 0.9, 0, 1, CPU)
    assert len({draws.pick(logits) for _ in range(600)}) > 400


def test_a_seed_repeats_and_greedy_draws_nothing() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    first, second, other = (Draws(1.0, 0.95, 0, seed, CPU) for seed in (1, 1, 2))
    drawn = [first.pick(logits) for _ in range(20)]
    assert drawn == [second.pick(logits) for _ in range(20)]
    assert drawn != [other.pick(logits) for _ in range(20)]
    assert Draws(0.0, 0.5, 3, 1, CPU).pick(logits) == int(logits.argmax())
