"""What a consolidation stores: a new version of an expert, or the statistics of its skill alone.

Knows how it becomes files and a revision; the decision was made before.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from dylora_moe.lifecycle.card import model_card
from dylora_moe.lifecycle.change import (
    commit,
    replaced,
    replaced_skill,
    store_expert,
    store_skill,
)
from dylora_moe.lifecycle.creating import trained_event
from dylora_moe.lifecycle.results import Action, LearnResult
from dylora_moe.lifecycle.scorecard import Scorecard
from dylora_moe.lifecycle.step import Step, finished
from dylora_moe.ports import Run
from dylora_moe.records import Event, ExpertVersion, SkillRecord, VerdictName
from dylora_moe.training.outcome import TrainingOutcome


@dataclass(frozen=True, slots=True)
class Trained:
    """A new version in the making: what its training came to, and the losses around it.

    Attributes:
        gate: the router's learned tensors before the training, to be put back if it is not kept.
    """

    run: Run
    outcome: TrainingOutcome
    before: float
    base: float
    gate: Mapping[str, Tensor]

    def is_better(self, by: float) -> bool:
        return self.outcome.best_loss < self.before * (1.0 - by)


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of the skill.

    Attributes:
        record: of the skill as it was; None for one that is new.
        current: the promoted version of its expert.
        trained: None where nothing was trained.
        better: whether what was trained becomes a new version.
        maturity: of the expert after the change.
    """

    skill_id: str
    record: SkillRecord | None
    current: ExpertVersion
    of_verdict: VerdictName
    trained: Trained | None = None
    better: bool = False
    maturity: float = 0.0

    @property
    def expert_id(self) -> str:
        return self.current.expert_id

    @property
    def run(self) -> Run | None:
        return self.trained.run if self.trained is not None else None


def store_change(
    step: Step, change: Change, card: Scorecard, events: Sequence[Event | None]
) -> LearnResult:
    """Stores what changed and commits it: a new version, or the statistics alone."""
    live, observation, current = step.live, step.observation, change.current
    skill, trained = live.skills[change.skill_id], change.trained
    told, version = list(events), replace(current, maturity=change.maturity)
    action: Action = "covered" if change.of_verdict == "covered" else "statistics"
    if change.better and trained is not None:
        action, version = "new version", _new_version(step, change, trained)
        told.insert(
            0, trained_event(current.alias, version.version, trained.outcome, trained.run.id)
        )
    kept = change.record
    if kept is not None and change.of_verdict == "revised":
        kept = replace(kept, examples=(), validation=())
    new_record = store_skill(
        live,
        step.stores,
        change.skill_id,
        skill.name,
        train=observation.train_examples,
        validation=observation.validation_examples,
        kept=kept,
    )
    note = _note(action, change, version.version, skill.name, observation.name)
    commit(
        live,
        step.stores,
        experts=replaced(live.revision.experts, version),
        skills=replaced_skill(live.revision.skills, new_record),
        card=card,
        arrival=observation.name,
        note=note,
        numbers={
            "action": action,
            "expert": current.alias,
            "version": version.version,
            "skill": skill.name,
            "arrival": observation.name,
            "seconds": time.perf_counter() - step.start,
            "waited": dict(step.waited),
            "loss_before": trained.before if trained is not None else None,
            "loss_trained": trained.outcome.best_loss if trained is not None else None,
        },
        events=told,
        run=change.run,
    )
    return finished(step, action, change.skill_id, note, change.run)


def _new_version(step: Step, change: Change, trained: Trained) -> ExpertVersion:
    """Stores the live weights as the expert's next version."""
    live, current, outcome = step.live, change.current, trained.outcome
    skill = live.skills[change.skill_id]
    text = model_card(live, current.alias, skill.name, outcome, trained.base)
    path, files = store_expert(live, step.stores, current.expert_id, text)
    return replace(
        current,
        version=live.versions[current.expert_id],
        storage_path=path,
        files=files,
        maturity=change.maturity,
        parents=(current.ref,),
        history={**outcome.numbers(), "base_loss": trained.base, "run_id": trained.run.id},
        lora_config=live.experts.config(current.expert_id),
        created_at="",
    )


def _note(action: Action, change: Change, version: int, skill: str, arrival: str) -> str:
    alias = change.current.alias
    if action == "new version":
        return f"{alias} v{version} from {arrival}"
    if action == "covered":
        return f"{alias} covers {arrival}"
    return f"statistics of {arrival} into {skill}; {alias} v{version} stays"
