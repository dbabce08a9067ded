"""A new expert for a new skill: guards, birth, training, router, gate, promotion."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dylora_moe.experts.maturity import after_training
from dylora_moe.lifecycle.card import model_card
from dylora_moe.lifecycle.change import (
    commit,
    gate_event,
    store_expert,
    store_skill,
    strategy_event,
    weigh,
)
from dylora_moe.lifecycle.gate import GateDecision
from dylora_moe.lifecycle.live import LiveSkill
from dylora_moe.lifecycle.names import checked_name, free_name
from dylora_moe.lifecycle.results import LearnResult
from dylora_moe.lifecycle.router_change import (
    adapt_router,
    calibrate_router,
    router_event,
    shape_router,
)
from dylora_moe.lifecycle.scorecard import Scorecard
from dylora_moe.lifecycle.step import Step, finished
from dylora_moe.lifecycle.teaching import (
    OWN,
    evaluation_sets,
    mature_neighbours,
    target_of,
    teach,
)
from dylora_moe.lifecycle.telling import report_step
from dylora_moe.ports import Run
from dylora_moe.records import BASE_NAME, Event, ExpertVersion
from dylora_moe.skills.growth import PoolSize, refusals, require_room
from dylora_moe.training.measure import answer_losses
from dylora_moe.training.outcome import TrainingOutcome


def growth_refusals(step: Step) -> str:
    """Why the pool may not grow an expert now; empty where it may."""
    found = refusals(
        step.recipe.growth,
        _size(step),
        samples=len(step.observation.train_examples),
        tokens=step.observation.answer_tokens,
        new_parameters=parameters_of_new(step),
    )
    return "; ".join(refusal.reason for refusal in found)


def parameters_of_new(step: Step) -> int:
    """Parameters a new expert of the recipe's shape would have at most."""
    shape = step.recipe.shape
    return step.live.experts.parameters_of_shape(rank=shape.max_rank, targets=shape.targets)


def create(step: Step) -> LearnResult:
    """Grows an expert for the arrival and promotes it if the gate lets it in.

    Raises:
        PoolFullError: a cap is reached (only a person's own order gets here without asking).
        PoolError: the name that the person chose is taken.
        TrainingError: the training went wrong.
    """
    live, observation, wished = step.live, step.observation, step.order.name
    require_room(step.recipe.growth, _size(step), parameters_of_new(step))
    if wished is not None:
        alias = checked_name(live.revision, wished)
    else:
        alias = free_name(live.revision, observation.name)
    run = step.run()
    state = run.state()
    expert_id = state.get("expert_id") or step.stores.registry.next_expert_id()
    run.save({**state, "expert_id": expert_id})
    shape_router(live, step.recipe)
    _give_birth(step, expert_id, alias)
    # Threshold and temperature of before do not fit the refitted rows.
    calibrate_router(live, step.recipe)
    new = _train(step, run, expert_id, alias)
    live.router.set_maturity({expert_id: new.maturity})
    began = time.perf_counter()
    step.watch.stage("router", f"{len(live.router.rows)} skills")
    fitted = adapt_router(live, step.recipe)
    routed = router_event(live, fitted, time.perf_counter() - began, run.id)
    step.watch.stage("gate", f"{len(live.skills)} skills")
    # Its last evaluation was on these very rows.
    pinned = {expert_id: new.outcome.evaluation[OWN]} if observation.validation is not None else {}
    scored, decision = weigh(live, step.card, step.recipe, changed=[expert_id], pinned=pinned)
    gated = gate_event(step.card, scored, decision, step.recipe.tolerance, run.id)
    report_step(step, run, routed, gated, scored.card)
    if not decision.promoted:
        return reject(step, expert_id, decision, gated, run)
    step.watch.stage("promotion", alias)
    told = [routed, strategy_event(step.card, scored.card, run.id), gated]
    return _commit(step, new, scored.card, told)


@dataclass(frozen=True, slots=True)
class _New:
    """A new expert, trained and not yet promoted."""

    run: Run
    expert_id: str
    alias: str
    outcome: TrainingOutcome
    base_loss: float
    maturity: float


def _train(step: Step, run: Run, expert_id: str, alias: str) -> _New:
    live, observation = step.live, step.observation
    sets = evaluation_sets(step, observation.validation or observation.train)
    scores = [similarity for _, similarity in step.judgement.verdict.nearest]
    if observation.validation is None:
        step.warn(
            f"{observation.name}: no validation rows, so training stops by its own rows; "
            "bring more rows or --validation FILE",
            run,
        )
    outcome = teach(
        step,
        run,
        expert_id,
        step.recipe.new_expert,
        observation.train,
        sets,
        teachers=mature_neighbours(live, step, expert_id),
        on_creation={"similarity_scores_on_creation": scores} if scores else None,
    )
    target = target_of(step, sets)
    # An expert that began at zero began as the base, and that was measured.
    base_loss = outcome.start_loss
    if _start(step):
        base_loss = answer_losses(live.model, target, expert=BASE_NAME).mean
    rival = _rival_loss(step, base_loss)
    maturity = after_training(0.0, outcome.steps_after_warmup, outcome.best_loss, base_loss, rival)
    return _New(run, expert_id, alias, outcome, base_loss, maturity)


def _rival_loss(step: Step, base_loss: float) -> float | None:
    """What the nearest expert would lose where the base loses this, by the share of the base's loss
    that it had on the rows that the verdict looked at; None where there was none."""
    judged = step.judgement
    if not judged.losses or not judged.base_loss:
        return None
    return base_loss * min(judged.losses.values()) / judged.base_loss


def _commit(step: Step, new: _New, card: Scorecard, events: Sequence[Event | None]) -> LearnResult:
    """Stores the expert and its skill and commits them."""
    live, stores, observation = step.live, step.stores, step.observation
    text = model_card(live, new.alias, observation.name, new.outcome, new.base_loss)
    path, files = store_expert(live, stores, new.expert_id, text)
    version = ExpertVersion(
        expert_id=new.expert_id,
        skill_id=step.skill_id,
        alias=new.alias,
        version=live.versions[new.expert_id],
        lora_config=live.experts.config(new.expert_id),
        storage_path=path,
        files=files,
        maturity=new.maturity,
        parents=tuple(live.ref(parent) for parent in _start(step)),
        history={**new.outcome.numbers(), "base_loss": new.base_loss, "run_id": new.run.id},
    )
    record = store_skill(
        live,
        stores,
        step.skill_id,
        new.alias,
        train=observation.train_examples,
        validation=observation.validation_examples,
    )
    commit(
        live,
        stores,
        experts=(*live.revision.experts, version),
        skills=(*live.revision.skills, record),
        card=card,
        arrival=observation.name,
        note=f"created {new.alias} v{version.version} from {observation.name}",
        numbers={
            "action": "created",
            "expert": new.alias,
            "version": version.version,
            "skill": new.alias,
            "arrival": observation.name,
            "seconds": time.perf_counter() - step.start,
            "waited": dict(step.waited),
        },
        events=[trained_event(new.alias, version.version, new.outcome, new.run.id), *events],
        run=new.run,
    )
    return finished(step, "created", step.skill_id, f"new expert {new.alias}", new.run)


def reject(
    step: Step, expert_id: str, decision: GateDecision, gated: Event, run: Run | None
) -> LearnResult:
    """Takes the change back that the gate refused, and says why."""
    numbers = {"arrival": step.observation.name}
    told = Event("rejected", numbers, decision.reason, run.id if run is not None else None)
    step.stores.registry.record(gated, told)
    step.live.become(step.stores.registry.current(), dirty=[expert_id])
    if run is not None:
        run.finish()
    return finished(step, "rejected", None, decision.reason, run)


def trained_event(alias: str, version: int, outcome: TrainingOutcome, run_id: str) -> Event:
    """The event `trained` with all numbers of a training."""
    numbers = {"expert": alias, "version": version, **outcome.numbers()}
    return Event("trained", numbers, run_id=run_id)


def _give_birth(step: Step, expert_id: str, alias: str) -> None:
    """Puts the expert into the model, its skill into library and router."""
    live, shape, observation = step.live, step.recipe.shape, step.observation
    live.experts.create_expert(
        expert_id,
        rank=shape.rank,
        alpha=shape.alpha,
        dropout=shape.dropout,
        targets=shape.targets,
        start_from=_start(step),
        seed=step.recipe.seed,
    )
    live.versions[expert_id] = 1
    keys = [example.key for example in observation.train_examples]
    skill = live.library.add_skill(step.skill_id, observation.features, expert_id, keys)
    live.router.add_expert(step.skill_id, expert_id, skill.statistics)
    live.skills[step.skill_id] = LiveSkill(
        step.skill_id, alias, expert_id, observation.validation_examples, observation.validation
    )


def _start(step: Step) -> dict[str, float]:
    """Weights of the experts a new one starts from: those that beat the base, by how much."""
    judgement = step.judgement
    if step.recipe.shape.start == "zero" or judgement.base_loss is None:
        return {}
    gains = {e: judgement.base_loss - loss for e, loss in judgement.losses.items()}
    helpful = {e: gain for e, gain in gains.items() if gain > 0.1 * judgement.base_loss}
    return {e: gain / sum(helpful.values()) for e, gain in helpful.items()}


def _size(step: Step) -> PoolSize:
    live = step.live
    return PoolSize(
        experts=len(live.revision.experts),
        parameters=sum(live.experts.parameter_count(name) for name in live.experts.names),
        arrivals_since_creation=step.arrivals_since_creation(),
    )
