"""When a phase evaluates, saves and reports: HF's callback, told by the plan and the clock.

Knows steps and seconds; what evaluating and saving are is the trainer's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dylora_moe.training.best import BestWeights
from dylora_moe.training.updates import UpdatePlan

OnProgress = Callable[[int, int, Mapping[str, Any]], None]
"""Called after every step with (steps done, steps in all, the last numbers)."""


class Evaluates(Protocol):
    """The part of the trainer that is called from here."""

    def evaluate(self) -> Any: ...


class PhaseCallback(TrainerCallback):
    """Evaluates after each epoch, asks for a checkpoint when enough time has passed, reports.

    Args:
        plan: says where epochs end.
        best: says what was evaluated, and whether to stop.
        seconds: wall clock between two checkpoints, at most.
        progress: is told of every step.
        numbers: the last logged numbers, for `progress`.

    Attributes:
        between_steps: whether the parameters are those after a whole number of optimizer steps;
            only then may they be saved.
        saved_at: time of the last checkpoint.
    """

    def __init__(
        self,
        plan: UpdatePlan,
        best: BestWeights,
        seconds: float,
        progress: OnProgress,
        numbers: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._best = best
        self._seconds = seconds
        self._progress = progress
        self._numbers = numbers
        self._clock = clock
        self.trainer: Evaluates | None = None
        self.between_steps = False
        self.saved_at = clock()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluates what the phase starts from, or what an interruption kept from being."""
        self.between_steps = True
        self.saved_at = self._clock()
        due = state.global_step == 0 or state.global_step in self._plan.epoch_ends
        if due and self._best.evaluated_at != state.global_step and self.trainer is not None:
            self.trainer.evaluate()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.between_steps = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.between_steps = True
        step = state.global_step
        control.should_evaluate = step in self._plan.epoch_ends
        control.should_save = self.is_due()
        self._progress(step, self._plan.steps, dict(self._numbers))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._best.exhausted:
            control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.saved_at = self._clock()

    def is_due(self, share: float = 1.0) -> bool:
        """Whether the time to the next checkpoint, or a share of it, has passed."""
        return self._clock() - self.saved_at >= share * self._seconds
