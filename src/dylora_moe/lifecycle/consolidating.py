"""More data for a skill the pool has: a new version if it helps, else only the statistics.

`known`: same inputs, same answers. `covered`: other inputs that an expert answers well; they become
a skill of their own that the same expert serves. `revised`: same inputs, other answers; the old
answers are no longer the measure.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dylora_moe.experts.maturity import after_bad_data, after_training
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.lifecycle.card import model_card
from dylora_moe.lifecycle.change import (
    adapt_router,
    commit,
    gate_event,
    replaced,
    replaced_skill,
    router_event,
    store_expert,
    store_skill,
    strategy_event,
    weigh,
)
from dylora_moe.lifecycle.creating import free_name, trained_event
from dylora_moe.lifecycle.live import LiveSkill
from dylora_moe.lifecycle.results import Action, LearnResult
from dylora_moe.lifecycle.scorecard import Scorecard
from dylora_moe.lifecycle.step import Step, finished
from dylora_moe.lifecycle.teaching import teach
from dylora_moe.ports import Run
from dylora_moe.records import BASE_NAME, Event, Example, ExpertVersion, SkillRecord, VerdictName
from dylora_moe.training.measure import answer_losses
from dylora_moe.training.outcome import TrainingOutcome
from dylora_moe.training.rows import Rows

_COVERED_WELL = 0.1
"""A covered arrival whose fit is below this has nothing left to teach."""


def consolidate(step: Step, skill_id: str, *, of_verdict: VerdictName) -> LearnResult:
    """Learns the arrival into the skill's expert.

    Raises:
        TrainingError: the training went wrong.
    """
    live, fit = step.live, step.judgement.verdict.fit
    expert_id = live.skills[skill_id].expert_id
    skill_id, record = _enrol(step, skill_id, expert_id, of_verdict)
    if of_verdict == "revised":
        step.watch.warning(
            f"{step.observation.name}: the inputs are those of {record.name if record else ''} "
            "and the answers are others; the skill is revised to the new answers"
        )
    if of_verdict == "covered" and fit is not None and fit.value < _COVERED_WELL:
        return _promote(step, skill_id, record, of_verdict, None)
    run = step.run()
    trained = _train_on(step, run, skill_id, expert_id, of_verdict)
    return _promote(step, skill_id, record, of_verdict, trained)


@dataclass(frozen=True, slots=True)
class _Trained:
    """A new version in the making: what its training came to, and the losses around it."""

    run: Run
    outcome: TrainingOutcome
    before: float
    base: float

    def is_better(self, by: float) -> bool:
        return self.outcome.best_loss < self.before * (1.0 - by)


def _enrol(
    step: Step, skill_id: str, expert_id: str, of_verdict: VerdictName
) -> tuple[str, SkillRecord | None]:
    """Puts the rows' statistics into library and router; the skill they belong to from now on,
    and its record where it had one."""
    live, observation = step.live, step.observation
    keys = [example.key for example in observation.train_examples]
    if of_verdict == "covered":
        skill = live.library.add_skill(step.skill_id, observation.features, expert_id, keys)
        live.router.add_expert(step.skill_id, expert_id, skill.statistics)
        name = free_name(live, step.order.name or observation.name)
        live.skills[step.skill_id] = LiveSkill(
            step.skill_id, name, expert_id, observation.validation_examples, observation.validation
        )
        return step.skill_id, None
    record = next(r for r in live.revision.skills if r.skill_id == skill_id)
    _extend(step, skill_id, keys)
    old = live.skills[skill_id]
    kept = () if of_verdict == "revised" else old.validation
    new = observation.validation_examples
    validation = _distinct([*kept, *new])
    rows = live.encode(validation) if validation else None
    live.skills[skill_id] = LiveSkill(skill_id, old.name, expert_id, validation, rows)
    return skill_id, record


def _extend(step: Step, skill_id: str, keys: Sequence[str]) -> None:
    """Adds the statistics of rows that are not in the skill yet."""
    live = step.live
    known = set(live.library[skill_id].keys)
    fresh = [index for index, key in enumerate(keys) if key not in known]
    if not fresh:
        return
    before = live.library[skill_id].statistics
    features = step.observation.features[fresh]
    after = live.library.extend(skill_id, features, [keys[index] for index in fresh]).statistics
    live.router.extend(skill_id, FeatureStatistics.from_features(features))
    assert after.count == before.count + len(fresh)


def _train_on(
    step: Step, run: Run, skill_id: str, expert_id: str, of_verdict: VerdictName
) -> _Trained:
    live, observation = step.live, step.observation
    # Reserved once a run, so that a resumed one does not skip a number.
    state = run.state()
    version = state.get("version") or step.stores.registry.next_version(expert_id)
    run.save({**state, "version": version, "expert_id": expert_id})
    target = live.skills[skill_id].rows or observation.train
    before = answer_losses(live.model, target, expert=expert_id).mean
    base = answer_losses(live.model, target, expert=BASE_NAME).mean
    examples = list(observation.train_examples)
    if of_verdict != "revised":
        examples += _rehearsed(step, expert_id, len(examples))
    train: Rows = live.encode(_distinct(examples), max_length=step.recipe.max_length)
    live.versions[expert_id] = version
    outcome = teach(step, run, expert_id, step.recipe.more_data, train, target)
    return _Trained(run, outcome, before, base)


def _rehearsed(step: Step, expert_id: str, count: int) -> list[Example]:
    """Stored training rows of the expert's skills, at most `count`, drawn by the recipe's seed."""
    live = step.live
    stored = [
        example
        for record in live.revision.skills
        if record.expert_id == expert_id
        for example in live.read(record.examples)
    ]
    return random.Random(step.recipe.seed).sample(stored, min(count, len(stored)))


def _promote(
    step: Step,
    skill_id: str,
    record: SkillRecord | None,
    of_verdict: VerdictName,
    trained: _Trained | None,
) -> LearnResult:
    live, recipe = step.live, step.recipe
    expert_id = live.skills[skill_id].expert_id
    current = next(v for v in live.revision.experts if v.expert_id == expert_id)
    maturity, changed, run = current.maturity, [], trained.run if trained else None
    if trained is not None and trained.is_better(recipe.better):
        changed = [expert_id]
        maturity = _grown(step, current, trained)
    elif trained is not None:
        live.restore_expert(expert_id)
        trained = None
    live.router.set_maturity({expert_id: maturity})
    began = time.perf_counter()
    step.watch.stage("router", f"{len(live.router.rows)} skills")
    routed = router_event(
        live, adapt_router(live, recipe), time.perf_counter() - began, run.id if run else None
    )
    step.watch.stage("gate", f"{len(live.skills)} skills")
    excused = [skill_id] if of_verdict == "revised" else []
    scored, decision = weigh(live, step.card, recipe, changed=changed, excused=excused)
    run_id = run.id if run is not None else None
    gated = gate_event(step.card, scored, decision, recipe.tolerance, run_id)
    if not decision.promoted:
        event = Event("rejected", {"arrival": step.observation.name}, decision.reason, run_id)
        step.stores.registry.record(gated, event)
        live.become(step.stores.registry.current(), dirty=[expert_id])
        if run is not None:
            run.finish()
        return finished(step, "rejected", None, decision.reason, run)
    told = [routed, strategy_event(step.card, scored.card, run_id), gated]
    return _commit(
        step, skill_id, record, current, maturity, of_verdict, trained, run, told, scored.card
    )


def _grown(step: Step, current: ExpertVersion, trained: _Trained) -> float:
    fit = step.judgement.verdict.fit
    maturity = current.maturity
    if step.judgement.verdict.name == "revised" and fit is not None:
        maturity = after_bad_data(maturity, fit.value)
    outcome = trained.outcome
    return after_training(maturity, outcome.steps_after_warmup, outcome.best_loss, trained.base)


def _commit(
    step: Step,
    skill_id: str,
    record: SkillRecord | None,
    current: ExpertVersion,
    maturity: float,
    of_verdict: VerdictName,
    trained: _Trained | None,
    run: Run | None,
    events: Sequence[Event | None],
    card: Scorecard,
) -> LearnResult:
    """Stores what changed and commits it: a new version, or the statistics alone."""
    live, stores, observation = step.live, step.stores, step.observation
    skill, run_id = live.skills[skill_id], run.id if run is not None else None
    version, told = replace(current, maturity=maturity), list(events)
    action: Action = "covered" if of_verdict == "covered" else "statistics"
    if trained is not None:
        action = "new version"
        number = live.versions[current.expert_id]
        told.insert(0, trained_event(current.alias, number, trained.outcome, trained.run.id))
        card_text = model_card(live, current.alias, skill.name, trained.outcome, trained.base)
        path, files = store_expert(live, stores, current.expert_id, card_text)
        history = {**trained.outcome.numbers(), "base_loss": trained.base, "run_id": run_id}
        version = replace(
            version,
            version=number,
            storage_path=path,
            files=files,
            parents=(current.ref,),
            history=history,
            lora_config=live.experts.config(current.expert_id),
            created_at="",
        )
    kept = record
    if kept is not None and of_verdict == "revised":
        kept = replace(kept, examples=(), validation=())
    new_record = store_skill(
        live,
        stores,
        skill_id,
        skill.name,
        train=observation.train_examples,
        validation=observation.validation_examples,
        kept=kept,
    )
    note = {
        "new version": f"{current.alias} v{version.version} from {observation.name}",
        "covered": f"{current.alias} covers {observation.name}",
        "statistics": f"statistics of {observation.name} into {skill.name}; "
        f"{current.alias} v{current.version} stays",
    }[action]
    commit(
        live,
        stores,
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
        },
        events=told,
        run_id=run_id,
    )
    if run is not None:
        run.finish()
    return finished(step, action, skill_id, note, run)


def _distinct(examples: Sequence[Example]) -> tuple[Example, ...]:
    return tuple({example.key: example for example in examples}.values())
