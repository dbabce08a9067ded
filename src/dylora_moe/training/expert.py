"""Trains one expert through its phases, or goes on where an interruption stopped.

Knows what may be asked and what a failed training takes back; how a phase runs is `run`'s. Knows
nothing of pools: which rows, which neighbours and what becomes of the outcome is decided above.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch

from dylora_moe.errors import TrainingError
from dylora_moe.foundation.tensor_bytes import to_bytes
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.ports import CHECKPOINTS, Reporter
from dylora_moe.training.callbacks import OnProgress
from dylora_moe.training.checkpoints import Checkpoints
from dylora_moe.training.distilling import lessons_of
from dylora_moe.training.gradient import Task
from dylora_moe.training.learnables import Learnables
from dylora_moe.training.objective import Penalty, Rehearsal, RouterLossWeights
from dylora_moe.training.outcome import TrainingOutcome
from dylora_moe.training.phases import Phase
from dylora_moe.training.rows import Rows
from dylora_moe.training.run import Run, Voice, phase_plan

CHECKPOINT_SECONDS = 45.0
"""Wall clock between two checkpoints: a minute of work lost at most."""


def train_expert(
    model: DyLoRAMoE,
    expert_id: str,
    *,
    train: Rows,
    evaluation: Mapping[str, Rows],
    target: str,
    phases: Sequence[Phase],
    neighbours: Sequence[str] = (),
    rehearsal: Rehearsal | None = None,
    losses: RouterLossWeights | None = None,
    beside: Sequence[str] = (),
    penalty: Penalty | None = None,
    teachers: Sequence[str] = (),
    temperature: float = 2.0,
    folder: Path,
    reporter: Reporter,
    seed: int = 0,
    gradient_checkpointing: bool = False,
    resume: bool = True,
    on_progress: OnProgress | None = None,
    on_warning: Callable[[str], None] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> TrainingOutcome:
    """Trains an expert, and the gate in the phases that say so, and leaves the best weights.

    Best is the lowest loss on the target of what was evaluated: before the first phase, and after
    each epoch, with the expert at weight one. Everything is frozen again afterwards. If it fails or
    is interrupted, expert and gate are as they were before, and the checkpoints stay.

    Args:
        model: with the expert in it, and its skill in the router if the gate learns or a phase
            collaborates.
        expert_id: the expert to train; all others stay bit for bit.
        train: rows to learn from.
        evaluation: named sets; each is logged as `eval_<set>_loss`.
        target: the set that says what is best, and when to stop early.
        phases: in order, with different names.
        neighbours: frozen experts to collaborate with, nearest first.
        rehearsal: stored features of every skill, for the phases in which the gate learns.
        losses: coefficients of the gate's losses; the defaults where None.
        beside: frozen experts that add their whole deltas to its own, in training and in
            measuring, instead of neighbours.
        penalty: a term of the loss over the expert's matrices; none where None.
        teachers: experts that the phases which distil go towards: frozen ones, or this one as it
            is now. With none, nothing is distilled.
        temperature: of the teachers' and the expert's distributions.
        folder: the run's folder; checkpoints go to `checkpoints/` in it.
        reporter: gets every log; not closed.
        seed: of the rows' order, dropout and rehearsal.
        gradient_checkpointing: recompute the blocks instead of keeping their activations.
        resume: go on from the folder's checkpoints if they are of the same settings and data;
            finished phases are skipped. Where False they are removed.
        on_progress: called after every step with (steps done, steps of the phase, last numbers).
        on_warning: called with every warning.
        checkpoint_seconds: wall clock between two checkpoints, at most.

    Raises:
        TrainingError: arguments that do not go together, a loss or gradient that is not finite,
            or memory that does not take a single row.
        StorageFullError: no room for a checkpoint.
        KeyboardInterrupt: passed on after a checkpoint was written.
    """
    task = Task(
        expert_id,
        train,
        evaluation,
        target,
        tuple(neighbours),
        rehearsal,
        losses if losses is not None else RouterLossWeights(),
        tuple(beside),
        penalty,
    )
    _check(model, task, phases)
    voice = Voice(reporter, on_progress, on_warning)
    facts = _facts(model, task, phases, seed)
    if teachers and any(phase.distillation for phase in phases):
        facts["teachers"] = {name: _weights(model, name) for name in teachers}
        facts["temperature"] = temperature
        # Before anything is learned or taken up: the expert may be its own teacher.
        task = replace(task, lessons=lessons_of(model, train, teachers, temperature))
    identity = _hash(json.dumps(facts, sort_keys=True))
    checkpoints = Checkpoints(folder / CHECKPOINTS, identity, voice.warn)
    if not resume:
        checkpoints.clear()
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    run = Run(model, task, checkpoints, voice, seed=seed, checkpoint_seconds=checkpoint_seconds)
    with _taken_back_on_failure(run.learnables), _recomputing(model, gradient_checkpointing):
        for index, phase in enumerate(phases):
            run.phase(index, phase)
    return run.outcome(with_gate=any(phase.train_gate for phase in phases))


def _check(model: DyLoRAMoE, task: Task, phases: Sequence[Phase]) -> None:
    names = [phase.name for phase in phases]
    if not phases or len(set(names)) != len(names):
        raise TrainingError(
            f"phases {', '.join(names) or 'none'}: give at least one, each with a name of its own"
        )
    if task.target not in task.evaluation:
        raise TrainingError(
            f"the target {task.target!r} is none of the evaluation sets "
            f"({', '.join(task.evaluation) or 'none'}); name one of them"
        )
    empty = [name for name, rows in task.evaluation.items() if not sum(rows.targets)]
    if empty or not sum(task.train.targets):
        raise TrainingError(
            f"no trained token in {', '.join(empty) or 'the training rows'}; give rows with answers"
        )
    others = {*task.neighbours, *task.beside}
    unknown = {task.expert_id, *others} - set(model.experts.names)
    if unknown or task.expert_id in others:
        raise TrainingError(
            f"experts {', '.join(sorted(unknown)) or task.expert_id} cannot take part: neighbours, "
            "and those beside it, are other experts of the model; load them first"
        )
    if task.neighbours and task.beside:
        raise TrainingError(
            f"{task.expert_id} has neighbours to mix with and experts beside it; give one of them"
        )
    needed = {task.expert_id} if any(phase.train_gate for phase in phases) else set()
    if any(share > 0 for phase in phases for share in phase.collaboration) and task.neighbours:
        needed |= {task.expert_id, *task.neighbours}
    absent = needed - set(model.router.experts)
    if absent:
        raise TrainingError(
            f"the router has no row for {', '.join(sorted(absent))}, which a phase trains the gate "
            "or a mixture with; add the skill to the router first"
        )


def _facts(model: DyLoRAMoE, task: Task, phases: Sequence[Phase], seed: int) -> dict[str, object]:
    """All that decides what a run computes, teachers aside: its checkpoints fit no other."""
    rehearsal = task.rehearsal.features if task.rehearsal is not None else {}
    parameters = model.experts.parameters_of(task.expert_id)
    facts: dict[str, object] = {
        "base": model.base.fingerprint,
        "expert": task.expert_id,
        "shapes": {name: list(p.shape) for name, p in parameters.items()},
        "rows": [row.key for row in task.train.encoded],
        "evaluation": {
            name: [row.key for row in rows.encoded] for name, rows in task.evaluation.items()
        },
        "target": task.target,
        "neighbours": task.neighbours,
        "rehearsal": {skill: len(features) for skill, features in rehearsal.items()},
        "losses": asdict(task.losses),
        "phases": [asdict(phase) for phase in phases],
        "updates": [
            _hash(repr(phase_plan(task.train.lengths, phase, seed, index).updates))
            for index, phase in enumerate(phases)
        ],
        "seed": seed,
    }
    facts["passes"] = "tokens"  # A checkpoint that counts its passes in rows is of another kind.
    if task.beside:
        facts["beside"] = {name: _weights(model, name) for name in task.beside}
    if task.penalty is not None:
        facts["penalty"] = task.penalty.name
    return facts


def _weights(model: DyLoRAMoE, expert_id: str) -> str:
    """Hash of an expert's matrices."""
    return hashlib.sha256(to_bytes(model.experts.state(expert_id), {})).hexdigest()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _taken_back_on_failure(learnables: Learnables) -> Iterator[None]:
    before = learnables.copy()
    try:
        yield
    except BaseException:
        learnables.load(before)
        raise


@contextmanager
def _recomputing(model: DyLoRAMoE, wanted: bool) -> Iterator[None]:
    """Gradient checkpointing, if wanted, and the model in eval mode afterwards."""
    already = model.is_gradient_checkpointing
    if wanted and not already:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        if wanted and not already:
            model.gradient_checkpointing_disable()
        model.train(False)
