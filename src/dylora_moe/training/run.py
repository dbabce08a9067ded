"""One training's phases, one after the other: skipped if finished, resumed if begun.

Knows what a phase hands to the next and leaves in its folder; how a step is made is the trainer's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerState

from dylora_moe.foundation.quiet import quiet
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.ports import Reporter
from dylora_moe.training.best import BestWeights
from dylora_moe.training.callbacks import OnProgress, PhaseCallback
from dylora_moe.training.checkpoints import Checkpoints
from dylora_moe.training.gradient import Task
from dylora_moe.training.kept import Kept
from dylora_moe.training.learnables import Learnables, read_weights, write_weights
from dylora_moe.training.memory import MicroBatches
from dylora_moe.training.meter import Meter
from dylora_moe.training.outcome import PhaseOutcome, TrainingOutcome
from dylora_moe.training.phases import Phase, scheduler_arguments
from dylora_moe.training.reporters import histogram
from dylora_moe.training.trainer import ExpertTrainer
from dylora_moe.training.updates import UpdatePlan, plan_updates
from dylora_moe.training.watchdog import Watchdog

OUTCOME_FILE = "outcome.json"


class Voice:
    """What a training says while it runs.

    Args:
        reporter: gets numbers and warnings.
        on_progress: called after every step; nobody where None.
        on_warning: called with every warning; nobody where None.

    Attributes:
        warnings: every warning so far.
        last: the numbers of the last log.
    """

    def __init__(
        self,
        reporter: Reporter,
        on_progress: OnProgress | None = None,
        on_warning: Callable[[str], None] | None = None,
    ) -> None:
        self._reporter = reporter
        self._on_progress = on_progress
        self._on_warning = on_warning
        self.warnings: list[str] = []
        self.last: dict[str, Any] = {}

    def warn(self, message: str) -> None:
        """One line for the person, and for the run's log."""
        self.warnings.append(message)
        self._reporter.log({"warning": message})
        if self._on_warning is not None:
            self._on_warning(message)

    def numbers(self, values: dict[str, Any], step: int) -> None:
        """Numbers of a step, counted over all phases."""
        self.last.update(values)
        self._reporter.log(values, step)

    def progress(self, done: int, total: int, values: Mapping[str, Any]) -> None:
        """A step was taken."""
        if self._on_progress is not None:
            self._on_progress(done, total, values)


class Run:
    """One call of `train_expert`.

    Args:
        model: with the expert in it.
        task: what is learned.
        checkpoints: of this run.
        voice: where it speaks.
        seed: of the whole run; each phase takes its own from it.
        checkpoint_seconds: wall clock between two checkpoints, at most.
    """

    def __init__(
        self,
        model: DyLoRAMoE,
        task: Task,
        checkpoints: Checkpoints,
        voice: Voice,
        *,
        seed: int,
        checkpoint_seconds: float,
    ) -> None:
        self._model, self._task = model, task
        self._checkpoints, self._voice = checkpoints, voice
        self._seed, self._checkpoint_seconds = seed, checkpoint_seconds
        self.learnables = Learnables(model, task.expert_id)
        self._meter = Meter()
        self._done: list[PhaseOutcome] = []
        self._best: BestWeights | None = None
        self._resumed = False

    def phase(self, index: int, phase: Phase) -> None:
        """Runs a phase to its end, or takes up what it left; the model then has its best weights.

        Raises:
            TrainingError: it went wrong.
            KeyboardInterrupt: after a checkpoint was written.
        """
        key = f"{index:02d}-{phase.name}"
        finished = self._checkpoints.finished(key)
        if finished is not None:
            self._take_up(finished, phase)
            return
        seed = phase_seed(self._seed, index)
        plan = phase_plan(self._task.train.lengths, phase, self._seed, index)
        best = BestWeights(phase.patience)
        if self._best is not None:
            best = self._best.carry(phase.patience)
        lengths, warn = self._task.train.lengths, self._voice.warn
        micro = MicroBatches(plan.largest_pass, lengths, warn, packed=phase.packing)
        kept = Kept(best, self._meter, micro)
        before = replace(self._meter)
        self._announce(phase, plan)
        with self.learnables.learning(phase.train_gate):
            steps = self._train(key, phase, plan, seed, kept)
        self.learnables.load(best.weights)
        outcome = _outcome(phase, plan, steps, kept, before)
        self._done.append(outcome)
        self._best = best

        def fill(folder: Path) -> None:
            write_weights(folder, self.learnables.copy())
            left = {"phase": outcome.to_json(), "best": best.state(), "meter": self._meter.state()}
            (folder / OUTCOME_FILE).write_text(json.dumps(left), encoding="utf-8")

        self._checkpoints.finish(key, fill)

    def outcome(self, with_gate: bool) -> TrainingOutcome:
        """The numbers of all phases.

        Args:
            with_gate: whether a phase trained the gate.
        """
        assert self._best is not None
        manager, expert_id = self._model.experts, self._task.expert_id
        trained = manager.parameter_count(expert_id)
        if with_gate:
            trained += sum(p.numel() for p in self.learnables.gate.values())
        tokens = sum(phase.tokens for phase in self._done)
        padding = sum(phase.padding_fraction * phase.tokens for phase in self._done)
        return TrainingOutcome(
            expert_id=expert_id,
            phases=tuple(self._done),
            steps=sum(phase.steps for phase in self._done),
            tokens=tokens,
            seconds=sum(phase.seconds for phase in self._done),
            start_loss=self._done[0].start_loss,
            best_loss=self._best.loss,
            evaluation={
                key.removeprefix("eval_").removesuffix("_loss"): loss
                for key, loss in self._best.metrics.items()
            },
            flops=self._meter.flops,
            peak_memory_bytes=self._meter.peak_memory_bytes,
            tokens_per_second=self._meter.tokens_per_second,
            padding_fraction=padding / tokens if tokens else 0.0,
            rank=manager.rank(expert_id),
            trainable_parameters=trained,
            trainable_share=trained / self._model.num_parameters(),
            bytes=manager.bytes(expert_id),
            warnings=tuple(self._voice.warnings),
            resumed=self._resumed,
        )

    def _train(self, key: str, phase: Phase, plan: UpdatePlan, seed: int, kept: Kept) -> int:
        """HF's loop over the phase; the steps that were taken, earlier ones included."""
        voice, steps_before = self._voice, sum(done.steps for done in self._done)

        def report(values: dict[str, Any], step: int) -> None:
            voice.numbers({"phase": phase.name, **values}, steps_before + step)

        newest = self._checkpoints.newest(key)
        if newest is not None:
            kept.read(newest)
            self._resumed = True
            if kept.best.exhausted:
                state = TrainerState.load_from_json(str(newest / "trainer_state.json"))
                return int(state.global_step)
            self.learnables.load(read_weights(newest))
        trainer = ExpertTrainer(
            self._model,
            self._task,
            phase,
            key,
            plan,
            seed=seed,
            kept=kept,
            checkpoints=self._checkpoints,
            callback=PhaseCallback(
                plan, kept.best, self._checkpoint_seconds, voice.progress, voice.last
            ),
            watchdog=Watchdog(phase.name, plan.steps, phase.learning_rate, voice.warn),
            report=report,
        )
        try:
            with quiet():
                trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
        except KeyboardInterrupt:
            trainer.rescue()
            raise
        return int(trainer.state.global_step)

    def _announce(self, phase: Phase, plan: UpdatePlan) -> None:
        """The facts of a phase that do not change while it runs."""
        task, manager = self._task, self._model.experts
        trained = manager.parameter_count(task.expert_id)
        if phase.train_gate:
            trained += sum(p.numel() for p in self.learnables.gate.values())
        facts: dict[str, Any] = {
            "phase": phase.name,
            "padding_fraction": plan.padding_fraction,
            "rank": manager.rank(task.expert_id),
            "trainable_parameters": trained,
            "trainable_share": trained / self._model.num_parameters(),
            f"expert_bytes/{task.expert_id}": manager.bytes(task.expert_id),
        }
        if plan.sequence_lengths:
            facts["packed_sequence_length_histogram"] = histogram(plan.sequence_lengths)
        self._voice.numbers(facts, sum(done.steps for done in self._done))

    def _take_up(self, folder: Path, phase: Phase) -> None:
        left = json.loads((folder / OUTCOME_FILE).read_text(encoding="utf-8"))
        weights = read_weights(folder)
        self.learnables.load(weights)
        self._best = BestWeights(phase.patience)
        self._best.load(left["best"], weights)
        self._meter.load(left["meter"])
        self._done.append(PhaseOutcome.from_json(left["phase"]))
        self._resumed = True


def phase_seed(seed: int, index: int) -> int:
    """The seed of a run's phase, counted from 0; of 32 bits, as NumPy takes them."""
    return (seed + 1000 * index) % 2**32


def phase_plan(lengths: Sequence[int], phase: Phase, seed: int, index: int) -> UpdatePlan:
    """The updates of a run's phase over rows of these lengths."""
    return plan_updates(lengths, phase, phase_seed(seed, index))


def _outcome(phase: Phase, plan: UpdatePlan, steps: int, kept: Kept, before: Meter) -> PhaseOutcome:
    best, seen = kept.best, kept.losses_seen
    return PhaseOutcome(
        name=phase.name,
        steps=steps,
        planned_steps=plan.steps,
        warmup_steps=scheduler_arguments(phase, plan.steps)["num_warmup_steps"],
        epochs=plan.epoch(steps),
        tokens=kept.meter.tokens - before.tokens,
        seconds=kept.meter.seconds - before.seconds,
        first_loss=seen[0] if seen else None,
        last_loss=seen[-1] if seen else None,
        start_loss=best.start_loss,
        best_loss=best.loss,
        best_step=best.step,
        stopped_early=steps < plan.steps,
        padding_fraction=plan.padding_fraction,
        pass_tokens=kept.micro.tokens,
        growths=tuple(kept.growths),
        freezes=tuple(kept.freezes),
    )
