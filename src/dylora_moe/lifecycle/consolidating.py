"""More data for a skill the pool has: a new version if it helps, else only the statistics.

`known`: same inputs, same answers. `covered`: other inputs that an expert answers well; they become
a skill of their own that the same expert serves. `revised`: same inputs, other answers; the old
answers are no longer the measure.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from dylora_moe.experts.maturity import after_bad_data, after_training
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.lifecycle.change import (
    gate_event,
    strategy_event,
    weigh,
)
from dylora_moe.lifecycle.creating import reject
from dylora_moe.lifecycle.live import LivePool, LiveSkill
from dylora_moe.lifecycle.names import free_name
from dylora_moe.lifecycle.rank_room import within_cap
from dylora_moe.lifecycle.results import LearnResult
from dylora_moe.lifecycle.router_change import adapt_router, router_event, shape_router
from dylora_moe.lifecycle.step import Step, finished
from dylora_moe.lifecycle.teaching import evaluation_sets, mature_neighbours, target_of, teach
from dylora_moe.lifecycle.telling import report_step
from dylora_moe.lifecycle.updating import Change, Trained, store_change
from dylora_moe.ports import Run
from dylora_moe.records import (
    BASE_NAME,
    Event,
    Example,
    SkillRecord,
    Verdict,
    VerdictName,
)
from dylora_moe.training.measure import answer_losses
from dylora_moe.training.rows import Rows

_COVERED_WELL = 0.1
"""A covered arrival whose fit is below this has nothing left to teach."""


def consolidate(step: Step, skill_id: str, *, of_verdict: VerdictName) -> LearnResult:
    """Learns the arrival into the skill's expert.

    Raises:
        TrainingError: the training went wrong.
    """
    live = step.live
    expert_id = live.skills[skill_id].expert_id
    shape_router(live, step.recipe)
    skill_id, record = _enrol(step, skill_id, expert_id, of_verdict)
    if of_verdict == "revised":
        step.warn(
            f"{step.observation.name}: the inputs are those of {live.skills[skill_id].name} and "
            "the answers are others; the skill is revised to the new answers"
        )
    current = next(v for v in live.revision.experts if v.expert_id == expert_id)
    change = Change(skill_id, record, current, of_verdict)
    if nothing_to_teach(step.judgement.verdict, of_verdict):
        return _promote(step, change)
    run = step.run()
    return _promote(step, replace(change, trained=_train_on(step, run, change)))


def nothing_to_teach(verdict: Verdict, treated_as: VerdictName) -> bool:
    """Whether the rows are answered so well already that only their statistics are taken."""
    fit = verdict.fit
    return treated_as == "covered" and fit is not None and fit.value < _COVERED_WELL


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
        name = free_name(live.revision, step.order.name or observation.name)
        live.skills[step.skill_id] = LiveSkill(
            step.skill_id, name, expert_id, observation.validation_examples, observation.validation
        )
        return step.skill_id, None
    record = next(r for r in live.revision.skills if r.skill_id == skill_id)
    _extend(step, record, keys)
    old = live.skills[skill_id]
    kept = () if of_verdict == "revised" else old.validation
    new = observation.validation_examples
    validation = _distinct([*kept, *new])
    rows = live.encode(validation) if validation else None
    live.skills[skill_id] = LiveSkill(skill_id, old.name, expert_id, validation, rows)
    return skill_id, record


def _extend(step: Step, record: SkillRecord, keys: Sequence[str]) -> None:
    """Adds the statistics of rows that are not in the skill yet."""
    live, skill_id = step.live, record.skill_id
    # The library keeps the keys of some rows only, the files those of all.
    known = live.keys_of(record.examples) | set(live.library[skill_id].keys)
    fresh = [index for index, key in enumerate(keys) if key not in known]
    if not fresh:
        return
    before = live.library[skill_id].statistics
    features = step.observation.features[fresh]
    after = live.library.extend(skill_id, features, [keys[index] for index in fresh]).statistics
    live.router.extend(skill_id, FeatureStatistics.from_features(features))
    assert after.count == before.count + len(fresh)


def _train_on(step: Step, run: Run, change: Change) -> Trained:
    live, observation, expert_id = step.live, step.observation, change.expert_id
    # Reserved once a run, so that a resumed one does not skip a number.
    state = run.state()
    version = state.get("version") or step.stores.registry.next_version(expert_id)
    run.save({**state, "version": version, "expert_id": expert_id})
    sets = evaluation_sets(step, live.skills[change.skill_id].rows or observation.train)
    target = target_of(step, sets)
    before = answer_losses(live.model, target, expert=expert_id).mean
    base = answer_losses(live.model, target, expert=BASE_NAME).mean
    examples = list(observation.train_examples)
    rehearsed = _rehearsed(step, change, round(step.recipe.replay * len(examples)))
    if step.recipe.drop_long:
        rehearsed, _ = live.within(rehearsed, live.limit(step.recipe.max_length))
    examples += rehearsed
    train: Rows = live.encode(_distinct(examples), max_length=step.recipe.max_length)
    live.versions[expert_id] = version
    # New answers have to be learned as from the start; more of the same ones only refine.
    recipe = step.recipe
    phases = recipe.more_data
    teachers: tuple[str, ...] = (expert_id,)
    if change.of_verdict == "revised":
        # What the expert said before is what it is to unlearn.
        phases = within_cap(live, recipe, expert_id)
        teachers = mature_neighbours(live, step, expert_id)
    gate = _gate(live)
    outcome = teach(step, run, expert_id, phases, train, sets, teachers=teachers)
    return Trained(run, outcome, before, base, gate)


def _gate(live: LivePool) -> dict[str, Tensor]:
    """What a training learns of the gate: its correction and its temperature, copied."""
    return {
        name: tensor.detach().clone()
        for name, tensor in live.router.state_dict().items()
        if name.startswith("correction.") or name == "log_temperature"
    }


def _rehearsed(step: Step, change: Change, count: int) -> list[Example]:
    """Stored training rows of the expert's skills, at most `count`, drawn by the recipe's seed;
    not the old answers of a skill that is revised."""
    live = step.live
    stored = [
        example
        for record in live.revision.skills
        if record.expert_id == change.expert_id
        and not (change.of_verdict == "revised" and record.skill_id == change.skill_id)
        for example in live.read(record.examples)
        if example.key not in step.recipe.apart
    ]
    return random.Random(step.recipe.seed).sample(stored, min(count, len(stored)))


def _promote(step: Step, change: Change) -> LearnResult:
    live, recipe, trained, run = step.live, step.recipe, change.trained, change.run
    expert_id, run_id = change.expert_id, run.id if run is not None else None
    better = trained is not None and trained.is_better(recipe.better)
    change = replace(change, better=better, maturity=_maturity(step, change, better))
    if trained is not None and not better:
        if change.of_verdict == "revised":
            return _unlearned(step, change, trained)
        live.restore_expert(expert_id)
        live.router.load_state_dict(dict(trained.gate), strict=False)
    live.router.set_maturity({expert_id: change.maturity})
    began = time.perf_counter()
    step.watch.stage("router", f"{len(live.router.rows)} skills")
    fitted = adapt_router(live, recipe)
    routed = router_event(live, fitted, time.perf_counter() - began, run_id)
    step.watch.stage("gate", f"{len(live.skills)} skills")
    scored, decision = weigh(
        live,
        step.card,
        recipe,
        changed=[expert_id] if better else [],
        excused=[change.skill_id] if change.of_verdict == "revised" else [],
    )
    gated = gate_event(step.card, scored, decision, recipe.tolerance, run_id)
    if run is not None:
        report_step(step, run, routed, gated, scored.card)
    if not decision.promoted:
        return reject(step, expert_id, decision, gated, run)
    told = [routed, strategy_event(step.card, scored.card, run_id), gated]
    return store_change(step, change, scored.card, told)


def _unlearned(step: Step, change: Change, trained: Trained) -> LearnResult:
    """Takes everything back: new answers that the expert did not learn replace no old ones."""
    name = step.live.skills[change.skill_id].name
    reason = (
        f"{change.current.alias} did not learn the new answers of {name} (loss "
        f"{trained.before:.3f} before, {trained.outcome.best_loss:.3f} after), so the old ones "
        "stay; train longer or at a higher learning rate, or learn the rows --as-new"
    )
    numbers = {"arrival": step.observation.name}
    step.stores.registry.record(Event("rejected", numbers, reason, trained.run.id))
    step.live.become(step.stores.registry.current(), dirty=[change.expert_id])
    trained.run.finish()
    return finished(step, "rejected", None, reason, trained.run)


def _maturity(step: Step, change: Change, better: bool) -> float:
    """Down by data that the expert does badly on, up by a training that helped."""
    verdict, maturity = step.judgement.verdict, change.current.maturity
    if verdict.name == "revised" and verdict.fit is not None:
        maturity = after_bad_data(maturity, verdict.fit.value)
    if not better or change.trained is None:
        return maturity
    outcome, base = change.trained.outcome, change.trained.base
    return after_training(maturity, outcome.steps_after_warmup, outcome.best_loss, base)


def _distinct(examples: Sequence[Example]) -> tuple[Example, ...]:
    return tuple({example.key: example for example in examples}.values())
