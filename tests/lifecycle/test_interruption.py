"""Whatever breaks a learning off, the pool answers as before, and the same command goes on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dylora_moe.build.pool import Pool
from dylora_moe.errors import LearningInterruptedError, StorageFullError, TrainingError
from dylora_moe.storage import durable
from tests.pools import LETTERS, SIGNS, Notes, fingerprint, learn, rows, settings, shouted, states

ARRIVALS: dict[str, tuple[Any, ...]] = {
    "created": ("signs", rows(SIGNS, 64, 5)),
    "new version": ("more", rows(LETTERS, 64, 13, shouted)),
}


def breaking(error: BaseException, at: int) -> Notes:
    def step(done: int) -> None:
        if done == at:
            raise error

    return Notes(at_step=step)


@pytest.mark.parametrize("action", ARRIVALS)
def test_ctrl_c_leaves_the_pool_and_the_same_command_ends_as_if_it_had_not_been(
    action: str, taught_folder: Path, copy: Callable[[Path], Pool]
) -> None:
    whole, parts = copy(taught_folder), copy(taught_folder)
    expected = learn(whole, *ARRIVALS[action])
    assert expected.action == action

    before = fingerprint(parts)
    last = 4 if action == "created" else 2
    with pytest.raises(LearningInterruptedError, match="same command goes on"):
        learn(parts, *ARRIVALS[action], watch=breaking(KeyboardInterrupt(), last))
    assert fingerprint(parts) == before
    (run,) = parts.unfinished()

    torch.manual_seed(99)  # the process that resumes has drawn other numbers
    notes = Notes()
    result = learn(parts, *ARRIVALS[action], watch=notes)
    assert result.run_id == run.id
    assert parts.unfinished() == []
    steps = parts.events("trained")[-1].numbers["steps"]
    assert notes.steps == steps - last  # what was done is not done again
    assert (result.action, result.expert, result.version) == (
        expected.action, expected.expert, expected.version,
    )  # fmt: skip
    for name, state in states(whole).items():
        for key, value in states(parts)[name].items():
            torch.testing.assert_close(value, state[key], atol=1e-6, rtol=0)
    assert fingerprint(parts).answers == fingerprint(whole).answers
    assert parts.events("trained")[-1].numbers["resumed"]


def test_a_finished_phase_is_not_trained_again(taught: Pool) -> None:
    with pytest.raises(LearningInterruptedError):
        learn(taught, *ARRIVALS["created"], watch=breaking(KeyboardInterrupt(), 3))
    (run,) = taught.unfinished()
    names = [path.name for path in (run.path / "checkpoints").iterdir()]
    assert "00-seeding-done" in names
    notes = Notes()
    learn(taught, *ARRIVALS["created"], watch=notes)
    phases = taught.events("trained")[-1].numbers["phases"]
    assert notes.steps == sum(phase["steps"] for phase in phases) - 3


@pytest.mark.parametrize(
    ("action", "error"),
    [("created", ZeroDivisionError()), ("new version", TrainingError("a loss is not finite"))],
)
def test_an_error_in_training_leaves_the_pool_as_it_was_and_is_kept_as_an_event(
    action: str, error: Exception, taught: Pool
) -> None:
    before = fingerprint(taught)
    with pytest.raises(type(error)):
        learn(taught, *ARRIVALS[action], watch=breaking(error, 3))
    assert fingerprint(taught) == before
    told = taught.events("error")[-1]
    assert told.numbers == {"arrival": ARRIVALS[action][0], "type": type(error).__name__}


@pytest.mark.parametrize("stage", ["observe", "training", "gate", "promotion"])
def test_an_interruption_at_any_stage_leaves_the_pool_as_it_was(stage: str, taught: Pool) -> None:
    before = fingerprint(taught)

    def interrupt(name: str) -> None:
        if name == stage:
            raise KeyboardInterrupt

    with pytest.raises(LearningInterruptedError):
        learn(taught, *ARRIVALS["created"], watch=Notes(at_stage=interrupt))
    assert fingerprint(taught) == before


def test_other_settings_start_over_and_close_the_run_that_cannot_be_gone_on_with(
    taught: Pool,
) -> None:
    with pytest.raises(LearningInterruptedError):
        learn(taught, *ARRIVALS["created"], watch=breaking(KeyboardInterrupt(), 5))
    (run,) = taught.unfinished()
    result = learn(taught, *ARRIVALS["created"], settings=settings(seed=1))
    assert result.run_id != run.id
    assert taught.unfinished() == []


def test_without_resume_the_runs_of_this_data_are_started_over_and_no_others(taught: Pool) -> None:
    with pytest.raises(LearningInterruptedError):
        learn(taught, *ARRIVALS["created"], watch=breaking(KeyboardInterrupt(), 5))
    (run,) = taught.unfinished()
    learn(taught, "more", rows(LETTERS, 8, 13), resume=False)
    assert [each.id for each in taught.unfinished()] == [run.id]
    result = learn(taught, *ARRIVALS["created"], resume=False)
    assert result.run_id != run.id
    assert not run.path.exists()


class FullDisk:
    """The module `os` on a disk that takes nothing any more, from when it is told."""

    def __init__(self) -> None:
        self.full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, descriptor: int, body: Any) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(descriptor, body)


@pytest.mark.parametrize("stage", ["observe", "promotion"])
def test_a_full_disk_leaves_the_pool_as_it_was_and_the_work_is_gone_on_with(
    stage: str, taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk()
    monkeypatch.setattr(durable, "os", disk)
    before = fingerprint(taught)

    def fill(name: str) -> None:
        disk.full = disk.full or name == stage

    with pytest.raises(StorageFullError, match="full"):
        learn(taught, *ARRIVALS["created"], watch=Notes(at_stage=fill))
    assert fingerprint(taught) == before
    disk.full = False
    unfinished = [run.id for run in taught.unfinished()]
    result = learn(taught, *ARRIVALS["created"])
    assert result.action == "created"
    assert result.run_id in unfinished or not unfinished
    assert taught.unfinished() == []


def test_a_run_whose_process_died_right_after_the_promotion_is_closed(
    taught: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dylora_moe.storage.runs import RunFolder

    def die(self: RunFolder) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "finish", die)
        with pytest.raises(LearningInterruptedError):
            learn(taught, *ARRIVALS["created"])
    assert taught.revision.expert("signs") is not None
    assert len(taught.unfinished()) == 1
    assert learn(taught, *ARRIVALS["created"]).action == "unchanged"
    assert taught.unfinished() == []
    assert taught.generate("+-*+-*", max_new_tokens=1).expert == "signs"
