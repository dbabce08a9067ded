"""The rank grows where an epoch stalls, and AdamW's state with it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dylora_moe.experts import low_rank
from dylora_moe.training.growth import carry_state, grown, has_stalled
from tests.training.setting import OWN, make_model
from tests.training.test_between import ALWAYS
from tests.training.test_expert import train


@pytest.mark.parametrize(
    ("loss", "stalled"), [(1.0, True), (0.995, True), (0.989, False), (1.2, True)]
)
def test_an_epoch_stalls_that_takes_less_than_a_share_off(loss: float, stalled: bool) -> None:
    assert has_stalled(1.0, loss, 0.01) == stalled


def test_at_a_share_of_nothing_only_a_rise_stalls() -> None:
    assert not has_stalled(1.0, 1.0, 0.0)
    assert has_stalled(1.0, 1.001, 0.0)


def test_the_rank_doubles_up_to_the_cap_and_never_falls() -> None:
    assert [grown(rank, 32) for rank in (4, 16, 24, 32, 64)] == [8, 32, 32, 32, 64]
    assert grown(8, 0) == 8


def stepped(*shapes: tuple[int, int]) -> tuple[dict[str, nn.Parameter], torch.optim.AdamW]:
    """Parameters that have taken two steps."""
    torch.manual_seed(0)
    names = ("x.lora_A.weight", "x.lora_B.weight")
    parameters = {n: nn.Parameter(torch.randn(s)) for n, s in zip(names, shapes, strict=True)}
    optimizer = torch.optim.AdamW([{"params": list(parameters.values()), "lr": 0.1}], fused=True)
    for _ in range(2):
        for one in parameters.values():
            one.grad = torch.randn_like(one)
        optimizer.step()
        optimizer.zero_grad()
    return parameters, optimizer


def test_the_old_part_steps_as_if_nothing_had_grown() -> None:
    old, optimizer = stepped((2, 3), (4, 2))
    same, unchanged = stepped((2, 3), (4, 2))
    torch.manual_seed(1)
    a, b = old.values()
    new = {
        "x.lora_A.weight": nn.Parameter(torch.cat([a.detach(), torch.randn(2, 3)])),
        "x.lora_B.weight": nn.Parameter(torch.cat([b.detach(), torch.zeros(4, 2)], 1)),
    }
    carry_state(optimizer, old, new)
    assert optimizer.param_groups[0]["params"] == list(new.values())
    assert optimizer.state.keys() == set(new.values())
    for name, parameter in new.items():
        parameter.grad = torch.ones_like(parameter)
        same[name].grad = torch.ones_like(same[name])
    optimizer.step()
    unchanged.step()
    assert torch.equal(new["x.lora_A.weight"][:2], same["x.lora_A.weight"])
    assert torch.equal(new["x.lora_B.weight"][:, :2], same["x.lora_B.weight"])


def test_the_first_step_of_what_is_new_is_no_longer_than_adam_s_own() -> None:
    # 2,000 steps in, a second moment of nought would let it be thrice as long, then ten times.
    old, optimizer = stepped((2, 3), (4, 2))
    for state in optimizer.state.values():
        state["step"].fill_(2000)
        state["exp_avg_sq"].fill_(1.0)
    new = {
        "x.lora_A.weight": nn.Parameter(torch.zeros(4, 3)),
        "x.lora_B.weight": nn.Parameter(torch.zeros(4, 4)),
    }
    carry_state(optimizer, old, new)
    for _ in range(10):
        for parameter in new.values():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    moved = new["x.lora_B.weight"][:, 2:].abs().max()
    assert 0 < moved < 10 * 0.1


def test_what_has_not_stepped_yet_has_nothing_to_hand_over() -> None:
    old = {"x.lora_A.weight": nn.Parameter(torch.zeros(2, 3))}
    new = {"x.lora_A.weight": nn.Parameter(torch.zeros(4, 3))}
    optimizer = torch.optim.AdamW(old.values())
    carry_state(optimizer, old, new)
    assert optimizer.param_groups[0]["params"] == list(new.values())
    assert not optimizer.state


@pytest.mark.parametrize("at", [1, 5])
def test_a_growth_that_is_broken_off_is_taken_back_and_the_cause_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    parts = make_model()
    before = parts[0].experts.state(OWN)
    calls = itertools.count(1)
    original = low_rank.resized

    def resized(*args: Any) -> Any:
        if next(calls) == at:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patched:
        patched.setattr(low_rank, "resized", resized)
        with pytest.raises(KeyboardInterrupt):
            train(parts, tmp_path, phases=[ALWAYS])
    after = parts[0].experts.state(OWN)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(p.requires_grad for p in parts[0].model.parameters())
    expected, _ = train(make_model(), tmp_path / "whole", phases=[ALWAYS])
    outcome, _ = train(parts, tmp_path, phases=[ALWAYS])
    assert outcome.phases[0].growths == expected.phases[0].growths
    # In other memory sums are rounded otherwise.
    assert outcome.best_loss == pytest.approx(expected.best_loss, abs=1e-4)
