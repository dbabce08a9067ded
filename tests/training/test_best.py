from __future__ import annotations

import json

import pytest
import torch

from dylora_moe.training.best import BestWeights


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([value])}


def test_the_lowest_loss_wins_and_waiting_has_an_end() -> None:
    best = BestWeights(patience=2)
    losses = [3.0, 2.0, 2.5, 2.4]
    for step, loss in enumerate(losses):
        best.offer(step, loss, {"eval_own_loss": loss}, lambda loss=loss: weights(loss))
        assert best.exhausted == (step == 3)
    assert (best.loss, best.step, best.start_loss) == (2.0, 1, 3.0)
    assert best.weights["w"].item() == 2.0


def test_an_evaluation_that_is_broken_off_leaves_everything_as_it_was() -> None:
    best = BestWeights(patience=2)
    best.offer(0, 3.0, {"a": 3.0}, lambda: weights(3.0))
    before = best.state()

    def broken() -> dict[str, torch.Tensor]:
        assert best.state() == before
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        best.offer(4, 2.0, {"a": 2.0}, broken)
    assert best.state() == before
    assert best.weights["w"].item() == 3.0


def test_it_comes_back_from_json_as_it_was() -> None:
    best = BestWeights(patience=2)
    best.offer(0, 3.0, {"a": 3.0}, lambda: weights(3.0))
    best.offer(4, 3.5, {"a": 3.5}, lambda: weights(3.5))
    again = BestWeights(patience=2)
    again.load(json.loads(json.dumps(best.state())), best.weights)
    assert again.state() == best.state()
    fresh = BestWeights(patience=2)
    again.load(json.loads(json.dumps(fresh.state())), {})
    assert again.state() == fresh.state()


def test_the_next_phase_begins_with_the_best_and_its_patience_anew() -> None:
    best = BestWeights(patience=1)
    best.offer(0, 3.0, {"a": 3.0}, lambda: weights(3.0))
    best.offer(4, 3.5, {"a": 3.5}, lambda: weights(3.5))
    following = best.carry(patience=1)
    assert (following.loss, following.step, following.start_loss) == (3.0, 0, 3.0)
    assert following.evaluated_at == 0
    assert not following.exhausted
