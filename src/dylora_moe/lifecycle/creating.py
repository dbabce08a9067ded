"""A new expert for a new skill: guards, birth, training, router, gate, promotion."""

from __future__ import annotations

import re
import time
from collections.abc import Collection

import torch

from dylora_moe.errors import PoolError
from dylora_moe.experts.maturity import after_training
from dylora_moe.lifecycle.card import model_card
from dylora_moe.lifecycle.change import (
    adapt_router,
    commit,
    gate_event,
    router_event,
    store_expert,
    store_skill,
    strategy_event,
    weigh,
)
from dylora_moe.lifecycle.live import LivePool, LiveSkill
from dylora_moe.lifecycle.results import LearnResult
from dylora_moe.lifecycle.step import Step, finished
from dylora_moe.lifecycle.teaching import neighbours, teach
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
    """Parameters a new expert of the recipe's shape would have."""
    shape = step.recipe.shape
    return step.live.experts.parameters_of_shape(rank=shape.rank, targets=shape.targets)


def create(step: Step) -> LearnResult:
    """Grows an expert for the arrival and promotes it if the gate lets it in.

    Raises:
        PoolFullError: a cap is reached (only a person's own order gets here without asking).
        TrainingError: the training went wrong.
    """
    live, observation = step.live, step.observation
    require_room(step.recipe.growth, _size(step), parameters_of_new(step))
    alias = free_name(live, step.order.name or observation.name)
    run = step.run()
    state = run.state()
    expert_id = state.get("expert_id") or step.stores.registry.next_expert_id()
    run.save({**state, "expert_id": expert_id})
    _give_birth(step, expert_id, alias)
    target = observation.validation or observation.train
    if observation.validation is None:
        step.watch.warning(
            f"{observation.name}: no validation rows, so training stops by its own rows; "
            "bring more rows or --validation FILE"
        )
    outcome = teach(
        step,
        run,
        expert_id,
        step.recipe.new_expert,
        observation.train,
        target,
        on_creation={"similarity_scores_on_creation": [s for _, s in _similarities(step)]},
    )
    base_loss = answer_losses(live.model, target, expert=BASE_NAME).mean
    rivals = [
        answer_losses(live.model, target, expert=e).mean for e in neighbours(live, step, expert_id)
    ]
    maturity = after_training(
        0.0, outcome.steps_after_warmup, outcome.best_loss, base_loss, min(rivals, default=None)
    )
    live.router.set_maturity({expert_id: maturity})
    began = time.perf_counter()
    step.watch.stage("router", f"{len(live.router.rows)} skills")
    fitted = adapt_router(live, step.recipe)
    routed = router_event(live, fitted, time.perf_counter() - began, run.id)
    step.watch.stage("gate", f"{len(live.skills)} skills")
    scored, decision = weigh(live, step.card, step.recipe, changed=[expert_id])
    gated = gate_event(step.card, scored, decision, step.recipe.tolerance, run.id)
    if not decision.promoted:
        step.stores.registry.record(
            gated,
            Event("rejected", {"arrival": observation.name}, decision.reason, run.id),
        )
        live.become(step.stores.registry.current(), dirty=[expert_id])
        run.finish()
        return finished(step, "rejected", None, decision.reason, run)
    step.watch.stage("promotion", alias)
    path, files = store_expert(
        live,
        step.stores,
        expert_id,
        model_card(live, alias, observation.name, outcome, base_loss),
    )
    version = ExpertVersion(
        expert_id=expert_id,
        skill_id=step.skill_id,
        alias=alias,
        version=live.versions[expert_id],
        lora_config=live.experts.config(expert_id),
        storage_path=path,
        files=files,
        maturity=maturity,
        parents=tuple(live.ref(e) for e in _parents(step)),
        history={**outcome.numbers(), "base_loss": base_loss, "run_id": run.id},
    )
    record = store_skill(
        live,
        step.stores,
        step.skill_id,
        alias,
        train=observation.train_examples,
        validation=observation.validation_examples,
    )
    commit(
        live,
        step.stores,
        experts=(*live.revision.experts, version),
        skills=(*live.revision.skills, record),
        card=scored.card,
        arrival=observation.name,
        note=f"created {alias} v{version.version} from {observation.name}",
        numbers={
            "action": "created",
            "expert": alias,
            "version": version.version,
            "skill": alias,
            "arrival": observation.name,
            "seconds": time.perf_counter() - step.start,
        },
        events=[
            trained_event(alias, version.version, outcome, run.id),
            routed,
            strategy_event(step.card, scored.card, run.id),
            gated,
        ],
        run_id=run.id,
    )
    run.finish()
    return finished(step, "created", step.skill_id, f"new expert {alias}", run)


def trained_event(alias: str, version: int, outcome: TrainingOutcome, run_id: str) -> Event:
    """The event `trained` with all numbers of a training."""
    numbers = {"expert": alias, "version": version, **outcome.numbers()}
    return Event("trained", numbers, run_id=run_id)


def free_name(live: LivePool, wished: str, taken: Collection[str] = ()) -> str:
    """A name no expert or skill has: the wished one made plain, or with a number behind it.

    Raises:
        PoolError: nothing is left of the name, or it is the base's.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", wished).strip("-.")
    if not plain or plain == BASE_NAME:
        raise PoolError(f"'{wished}' cannot name an expert; use letters, digits, '-', '_' and '.'")
    used = {e.alias for e in live.revision.experts} | {e.expert_id for e in live.revision.experts}
    used |= {record.name for record in live.revision.skills} | set(taken)
    name, number = plain, 1
    while name in used:
        number += 1
        name = f"{plain}-{number}"
    return name


def _give_birth(step: Step, expert_id: str, alias: str) -> None:
    """Puts the expert into the model, its skill into library and router."""
    live, shape, observation = step.live, step.recipe.shape, step.observation
    devices = [live.base.device] if live.base.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(step.recipe.seed)
        live.experts.create_expert(
            expert_id,
            rank=shape.rank,
            alpha=shape.alpha,
            dropout=shape.dropout,
            targets=shape.targets,
            start_from=_start(step),
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


def _parents(step: Step) -> list[str]:
    return list(_start(step))


def _similarities(step: Step) -> list[tuple[str, float]]:
    return [(step.live.skills[s].name, value) for s, value in step.judgement.verdict.nearest]


def _size(step: Step) -> PoolSize:
    live = step.live
    return PoolSize(
        experts=len(live.revision.experts),
        parameters=sum(live.experts.parameter_count(name) for name in live.experts.names),
        arrivals_since_creation=step.arrivals_since_creation(),
    )
