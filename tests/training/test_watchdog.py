from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dylora_moe.errors import TrainingError
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.training.gradient import Task, UpdateGradient
from dylora_moe.training.learnables import Learnables
from dylora_moe.training.memory import MicroBatches
from dylora_moe.training.objective import Rehearsal, RouterLossWeights
from dylora_moe.training.phases import Phase
from dylora_moe.training.watchdog import Update, Watchdog
from tests.training.setting import OTHER, OWN, make_model
from tests.training.test_expert import train

GOOD = Update(rows=[3, 4], loss=2.0, gradient_norms={OWN: 1.0, "router": 0.0})


def watching(steps: int = 100) -> tuple[Watchdog, list[str]]:
    told: list[str] = []
    return Watchdog("seeding", steps, 1e-3, told.append), told


def test_a_healthy_run_is_not_warned_of() -> None:
    dog, told = watching()
    dog.base_loss = 2.1
    for step in range(60):
        loss = 2.0 - step * 0.02 + 0.1 * (-1) ** step
        dog.look(replace(GOOD, loss=loss, usage={OWN: 0.4, "expert_1": 0.5}), step)
    assert told == []


@pytest.mark.parametrize(
    ("update", "words"),
    [
        (replace(GOOD, loss=float("nan")), r"answer loss is nan \(rows 3, 4\)"),
        (replace(GOOD, loss=float("inf")), "answer loss is inf"),
        (replace(GOOD, parts={"z_loss": float("nan")}), "z_loss is nan"),
        (replace(GOOD, gradient_norms={OWN: float("inf")}), f"gradient of {OWN} is inf"),
    ],
)
def test_what_is_not_finite_raises_and_is_named(update: Update, words: str) -> None:
    dog, _ = watching()
    with pytest.raises(TrainingError, match=rf"seeding, step 6.*{words}.*lower learning_rate"):
        dog.look(update, 5)


def test_a_first_loss_far_from_the_bases_is_told_once() -> None:
    dog, told = watching()
    dog.base_loss = 2.0
    dog.look(replace(GOOD, loss=6.0), 0)
    dog.look(replace(GOOD, loss=6.0), 1)
    assert len(told) == 1
    assert "first loss is 6.000, far above the base's 2.000" in told[0]


def test_a_first_loss_far_below_the_bases_is_told_of_a_fresh_expert_alone() -> None:
    for fresh, lines in ((True, 1), (False, 0)):
        dog, told = watching()
        dog.base_loss, dog.is_fresh = 3.0, fresh
        dog.look(replace(GOOD, loss=0.2), 0)
        assert len(told) == lines
        assert all("first loss is 0.200, far below the base's 3.000" in text for text in told)


def test_noise_of_a_loss_near_zero_is_no_rise() -> None:
    dog, told = watching()
    dog.base_loss = 6.0
    for step in range(80):
        dog.look(replace(GOOD, loss=0.01 if step < 5 else 0.1), step)
    assert not any("stayed above" in line for line in told)


def test_missing_and_tiny_gradients_are_told() -> None:
    dog, told = watching()
    dog.look(replace(GOOD, silent=["x.lora_A.weight"]), 0)
    assert told == []
    dog.look(replace(GOOD, silent=["x.lora_A.weight"]), 2)
    assert "1 trainable tensors get no gradient (x.lora_A.weight" in told[0]
    dog.look(replace(GOOD, gradient_norms={OWN: 1e-12}), 3)
    assert f"gradient of {OWN} has norm 1.0e-12" in told[1]


def test_a_loss_that_rises_for_long_is_told_and_a_short_bump_is_not() -> None:
    dog, told = watching()
    for step in range(40):
        dog.look(replace(GOOD, loss=5.0 if step in (20, 21) else 2.0), step)
    assert told == []
    for step in range(40, 80):
        dog.look(replace(GOOD, loss=4.0), step)
    assert len(told) == 1
    assert "stayed above its lowest" in told[0]


def test_an_expert_without_traffic_and_one_with_all_of_it_are_told() -> None:
    dog, told = watching()
    for step in range(20):
        dog.look(replace(GOOD, usage={OWN: 1.0, "expert_1": 0.0}), step)
    assert len(told) == 2
    assert any("expert_1 gets no traffic" in text for text in told)
    assert any(f"{OWN} gets all of the traffic" in text for text in told)


def test_a_collapsed_gate_is_told_though_the_bases_rows_are_rehearsed_too() -> None:
    model, rows, valid, _ = make_model()
    base = torch.randn(24, rows.features.shape[1], generator=torch.Generator().manual_seed(1))
    model.router.set_none(FeatureStatistics.from_features(50 * base))
    # What belongs to the other expert looks like the own: all that no one else gets goes there.
    stored = {"skill_1": rows.features, "skill_2": rows.features, "base": 50 * base}
    with torch.no_grad():
        model.router.correction.delta_b[1:] = torch.tensor([-40.0, 40.0])
    dog, told = watching()
    rehearsal = Rehearsal(stored, per_skill=8)
    task = Task(OWN, rows, {"own": valid}, "own", (OTHER,), rehearsal, RouterLossWeights())
    phase = Phase("one", train_gate=True)
    with Learnables(model, OWN).learning(phase.train_gate):
        micro = MicroBatches(1 << 20, rows.lengths, told.append)
        maker = UpdateGradient(model, task, phase, 20, 0, micro)
        for step in range(12):
            numbers = maker.make([(0, 1)], step)
            usage = {name: float(numbers[f"expert_usage/{name}"]) for name in (OTHER, OWN)}
            assert sum(usage.values()) < 0.9
            dog.look(replace(GOOD, usage=usage), step)
    assert any(f"{OWN} gets all of the traffic" in text for text in told)


def test_the_training_tells_the_watchdog_what_is_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make_model()
    monkeypatch.setattr(UpdateGradient, "base_loss", lambda self, passes: 100.0)
    told: list[str] = []
    train(parts, tmp_path, on_warning=told.append)
    assert (
        [text for text in told if "far below the base's" in text]
        == [text for text in told if text.startswith("seeding: the first loss")]
        != []
    )


def test_a_loss_that_is_nan_stops_the_training_and_leaves_the_expert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make_model()
    before = parts[0].experts.state(OWN)
    original, calls = DyLoRAMoE.forward, 0

    def forward(self: DyLoRAMoE, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        output = original(self, *args, **kwargs)
        if torch.is_grad_enabled():
            calls += 1
            if calls == 6:
                output.loss = output.loss * float("nan")
        return output

    monkeypatch.setattr(DyLoRAMoE, "forward", forward)
    with pytest.raises(TrainingError, match=r"consolidation, step 3: answer loss is nan"):
        train(parts, tmp_path)
    after = parts[0].experts.state(OWN)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_warnings_reach_the_outcome_the_reporter_and_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make_model()
    monkeypatch.setattr(UpdateGradient, "base_loss", lambda self, passes: 0.1)
    told: list[str] = []
    outcome, memory = train(parts, tmp_path, on_warning=told.append)
    assert any("far above the base's" in text for text in told)
    assert list(outcome.warnings) == told == memory.series("warning")
