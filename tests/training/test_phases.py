from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from dylora_moe.errors import ConfigError
from dylora_moe.training.phases import Phase, consolidation, scheduler_arguments, seeding


def rates(phase: Phase, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(optimizer=optimizer, **scheduler_arguments(phase, steps))
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_the_dense_share_is_exact_at_both_ends() -> None:
    phase = Phase("a", collaboration=(0.3, 0.0))
    assert phase.dense_share(0, 7) == 0.3
    assert phase.dense_share(6, 7) == 0.0
    shares = [phase.dense_share(step, 7) for step in range(7)]
    assert shares == sorted(shares, reverse=True)
    assert phase.dense_share(0, 1) == 0.0


def test_consolidation_ends_one_hot_and_seeding_hands_over_where_it_begins() -> None:
    assert consolidation().collaboration[1] == 0.0
    assert seeding().collaboration[1] == consolidation().collaboration[0]
    assert seeding(epochs=2.0).epochs == 2.0
    assert consolidation().train_gate
    assert not seeding().train_gate


def test_cosine_warms_up_and_falls_to_almost_nothing() -> None:
    found = rates(Phase("a", scheduler="cosine", warmup_ratio=0.2), 20)
    assert found[0] == 0.0
    assert max(found) == found[4] == 1.0
    assert found[4:] == sorted(found[4:], reverse=True)
    assert found[-1] < 0.02


def test_warmup_stable_decay_is_stable_between() -> None:
    found = rates(Phase("a", scheduler="warmup_stable_decay", warmup_ratio=0.1), 20)
    assert found[2:17] == [1.0] * 15
    assert found[-1] < 0.2


def test_constant_stays() -> None:
    assert rates(Phase("a", scheduler="constant", warmup_ratio=0.0), 4) == [1.0] * 4


@pytest.mark.parametrize("scheduler", ["cosine", "warmup_stable_decay", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_phases_learn_at_some_step(scheduler: str, steps: int) -> None:
    assert max(rates(Phase("a", scheduler=scheduler, warmup_ratio=0.9), steps)) > 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0.0},
        {"batch_size": 0},
        {"collaboration": (0.0, 1.5)},
        {"patience": 0},
        {"distillation": -0.5},
    ],
)
def test_a_phase_out_of_range_is_told(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="phase a"):
        Phase("a", **wrong)  # type: ignore[arg-type]
