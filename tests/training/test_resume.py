"""Interrupted and resumed equals never interrupted."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dylora_moe.training import updates
from dylora_moe.training.best import BestWeights
from dylora_moe.training.between import BetweenEpochs
from dylora_moe.training.trainer import ExpertTrainer
from tests.training.setting import OWN, make_model, two_phases
from tests.training.test_expert import train


class Interrupt:
    """Raises at a step of the second phase."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.steps: list[int] = []

    def __call__(self, done: int, total: int, values: Mapping[str, Any]) -> None:
        self.steps.append(done)
        if len(self.steps) == self.at:
            raise KeyboardInterrupt


def checkpoint_names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("at", "dropout"),
    [(5, 0.2), (9, 0.0), (15, 0.2)],
    ids=["mid-epoch", "epoch-end", "last"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, at: int, dropout: float) -> None:
    whole = make_model(dropout=dropout)
    expected, _ = train(whole, tmp_path / "whole")

    stopped = make_model(dropout=dropout)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, tmp_path / "parts", on_progress=Interrupt(at))
    names = checkpoint_names(tmp_path / "parts")
    assert names[0] == "00-seeding-done"
    assert names[1:] == [f"01-consolidation-step{at - 3:06d}"]

    again = make_model(dropout=dropout)
    torch.manual_seed(99)  # the process that resumes has drawn other numbers
    interrupt = Interrupt(999)
    outcome, _ = train(again, tmp_path / "parts", on_progress=interrupt)
    assert outcome.resumed
    assert interrupt.steps == list(range(at - 2, 13))
    assert outcome.best_loss == expected.best_loss
    assert outcome.steps == expected.steps
    assert outcome.tokens == expected.tokens
    assert outcome.evaluation == expected.evaluation
    for name, value in whole[0].experts.state(OWN).items():
        assert torch.equal(value, again[0].experts.state(OWN)[name])
    for (name, value), other in zip(
        whole[0].router.named_parameters(), again[0].router.parameters(), strict=True
    ):
        assert torch.equal(value, other), name


def test_an_interruption_inside_a_step_leaves_the_state_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_model(dropout=0.2)
    expected, _ = train(whole, tmp_path / "whole")
    calls = 0
    original = ExpertTrainer._show

    def show(self: ExpertTrainer, rows: Any, step: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        original(self, rows, step)

    monkeypatch.setattr(ExpertTrainer, "_show", show)
    with pytest.raises(KeyboardInterrupt):
        train(make_model(dropout=0.2), tmp_path / "parts")
    assert checkpoint_names(tmp_path / "parts")[-1] == "01-consolidation-step000003"
    outcome, _ = train(make_model(dropout=0.2), tmp_path / "parts")
    assert outcome.best_loss == expected.best_loss


def test_an_interruption_in_an_evaluation_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = train(make_model(), tmp_path / "whole")
    calls = 0
    original = ExpertTrainer.evaluate

    def evaluate(self: ExpertTrainer, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:  # the start, the end of seeding, the first epoch of consolidation
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ExpertTrainer, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        train(make_model(), tmp_path / "parts")
    outcome, memory = train(make_model(), tmp_path / "parts")
    assert outcome.best_loss == expected.best_loss
    assert len(memory.series("eval_own_loss")) == 2


@pytest.mark.parametrize("at", ["copy", "after the note"])
def test_an_interruption_while_the_best_is_noted_saves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    phases = [replace(two_phases()[1], max_rank=16, grow_below=0.99)]
    whole = make_model()
    expected, _ = train(whole, tmp_path / "whole", phases=phases)
    assert expected.phases[0].growths

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    offer = BestWeights.offer

    def broken(self: BestWeights, step: int, loss: float, metrics: Any, weights: Any) -> bool:
        return offer(self, step, loss, metrics, interrupt)

    with monkeypatch.context() as patched:
        if at == "copy":
            patched.setattr(BestWeights, "offer", on_call(2, offer, broken))
        else:
            patched.setattr(BetweenEpochs, "is_due", on_call(2, BetweenEpochs.is_due, interrupt))
        with pytest.raises(KeyboardInterrupt):
            train(make_model(), tmp_path / "parts", phases=phases, checkpoint_seconds=0.0)
    again = make_model()
    outcome, _ = train(again, tmp_path / "parts", phases=phases)
    assert outcome.phases[0].growths == expected.phases[0].growths
    assert outcome.best_loss == expected.best_loss
    for name, value in whole[0].experts.state(OWN).items():
        assert torch.equal(value, again[0].experts.state(OWN)[name])


def on_call(number: int, original: Any, instead: Any) -> Any:
    """A function that does something else the so manieth time."""
    calls = itertools.count(1)
    return lambda *args: (instead if next(calls) == number else original)(*args)


def test_finished_phases_are_skipped(tmp_path: Path) -> None:
    expected, _ = train(make_model(), tmp_path)
    again = make_model()
    interrupt = Interrupt(999)
    outcome, _ = train(again, tmp_path, on_progress=interrupt)
    assert interrupt.steps == []
    assert outcome.best_loss == expected.best_loss
    assert [phase.steps for phase in outcome.phases] == [p.steps for p in expected.phases]


def test_without_resume_everything_is_trained_again(tmp_path: Path) -> None:
    train(make_model(), tmp_path)
    interrupt = Interrupt(999)
    outcome, _ = train(make_model(), tmp_path, resume=False, on_progress=interrupt)
    assert len(interrupt.steps) == 15
    assert not outcome.resumed


def test_checkpoints_of_other_settings_are_not_used(tmp_path: Path) -> None:
    train(make_model(), tmp_path)
    outcome, memory = train(make_model(), tmp_path, seed=1)
    assert not outcome.resumed
    assert any("other settings" in warning for warning in memory.series("warning"))


def test_checkpoints_of_another_plan_of_updates_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(make_model(), tmp_path)
    monkeypatch.setattr(updates, "_ROOM", 0.0)  # As after a release that cuts passes otherwise.
    assert not train(make_model(), tmp_path)[0].resumed


def test_checkpoints_come_by_the_clock_and_hold_no_base(tmp_path: Path) -> None:
    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        train(model, tmp_path, on_progress=Interrupt(8), checkpoint_seconds=0.0)
    names = checkpoint_names(tmp_path)
    assert names == [
        "00-seeding-done", "01-consolidation-step000004", "01-consolidation-step000005",
    ]  # fmt: skip
    bytes_ = sum(path.stat().st_size for path in (tmp_path / "checkpoints" / names[1]).iterdir())
    assert bytes_ < 8 * model[0].experts.bytes(OWN)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    expected, _ = train(make_model(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(make_model(), tmp_path / "a", on_progress=Interrupt(8), checkpoint_seconds=0.0)
    newest = tmp_path / "a" / "checkpoints" / checkpoint_names(tmp_path / "a")[-1]
    body = bytearray((newest / "weights.safetensors").read_bytes())
    body[-1] ^= 1
    (newest / "weights.safetensors").write_bytes(body)
    interrupt = Interrupt(999)
    outcome, memory = train(make_model(), tmp_path / "a", on_progress=interrupt)
    assert interrupt.steps[0] == 5
    assert outcome.best_loss == expected.best_loss
    assert any("damaged (weights.safetensors)" in text for text in memory.series("warning"))
    assert two_phases()[0].name == outcome.phases[0].name
