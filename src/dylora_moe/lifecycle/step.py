"""One arrival on its way through the pool: everything the actions on it need, and its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dylora_moe.lifecycle.change import Stores, load_card
from dylora_moe.lifecycle.judgement import Judgement
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.observation import Observation
from dylora_moe.lifecycle.recipe import Order, Recipe
from dylora_moe.lifecycle.results import Action, LearnResult
from dylora_moe.lifecycle.scorecard import Scorecard
from dylora_moe.lifecycle.watch import Watch
from dylora_moe.ports import Reporter, Run
from dylora_moe.records import Event


@dataclass(frozen=True, eq=False)
class Step:
    """What an action on an arrival works with.

    Attributes:
        card: scores of the revision the step starts from.
        key: hash of the rows, the settings and that revision: what a run is resumed by.
        start: `time.perf_counter()` when the arrival came.
        waited: batches that had waited and are part of it, with their rows.
    """

    live: LivePool
    stores: Stores
    recipe: Recipe
    order: Order
    watch: Watch
    reporter: Callable[[Run], Reporter]
    observation: Observation
    judgement: Judgement
    card: Scorecard
    key: str
    start: float
    waited: Mapping[str, int]

    @property
    def skill_id(self) -> str:
        """Id of a new skill made of this arrival: its content's hash, so a resumed run agrees."""
        return f"skill_{self.key[:12]}"

    def arrivals_since_creation(self) -> int | None:
        """Arrivals settled since the last expert was created, this one not counted; one that was
        interrupted and told again counts once."""
        count = 0
        for event in reversed(self.stores.registry.events()):
            if event.kind == "promoted" and event.numbers.get("action") == "created":
                return count
            settled = event.kind in ("promoted", "rejected", "waiting")
            count += settled and event.numbers.get("arrival") is not None
        return None

    def warn(self, message: str, run: Run | None = None) -> None:
        """Tells the front, and keeps it as an event."""
        self.watch.warning(message)
        numbers = {"what": message, "arrival": self.observation.name}
        run_id = run.id if run is not None else None
        self.stores.registry.record(Event("warning", numbers, message, run_id))

    def run(self) -> Run:
        """The run of this very step: an unfinished one, or a new one.

        An unfinished run that started from another revision or under other settings can never be
        gone on with and is closed.
        """
        for run in self.stores.runs.unfinished():
            state = run.state()
            if state.get("key") == self.key:
                return run
            if state.get("arrival") == self.observation.name:
                run.save({**state, "abandoned": True})
                run.finish()
        return self.stores.runs.create({"arrival": self.observation.name, "key": self.key})


def warn_of_name(watch: Watch, order: Order, action: Action, called: Sequence[str]) -> None:
    """Says so where a person named a new expert and there is none.

    Args:
        called: what the rows went to; under the very name that was given, nothing is amiss.
    """
    if order.name is not None and order.name not in called:
        what = f"the rows went to {called[0]}" if called else "the rows wait"
        watch.warning(
            f"the name '{order.name}' has no effect: there is no new expert, {what} ({action}); "
            "to have one whatever the verdict, learn them --as-new"
        )


def finished(
    step: Step,
    action: Action,
    skill_id: str | None,
    message: str,
    run: Run | None = None,
) -> LearnResult:
    """The result of a step, read off what is live now."""
    live = step.live
    card = load_card(live, step.stores.artifacts)
    skill = live.skills.get(skill_id) if skill_id is not None else None
    if action not in ("created", "covered", "rejected"):
        called = (live.alias(skill.expert_id), skill.name) if skill is not None else ()
        warn_of_name(step.watch, step.order, action, called)
    return LearnResult(
        arrival=step.observation.name,
        verdict=step.judgement.verdict,
        action=action,
        expert=live.alias(skill.expert_id) if skill is not None else None,
        version=live.versions[skill.expert_id] if skill is not None else None,
        skill=skill.name if skill is not None else None,
        scores=card.by_name(),
        revision=live.revision.number,
        run_id=run.id if run is not None else "",
        seconds=time.perf_counter() - step.start,
        message=message,
    )
