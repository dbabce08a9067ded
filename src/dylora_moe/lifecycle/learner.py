"""The learner: takes arrivals one by one and decides, with all it may use, what becomes of each.

observe -> verdict -> expert -> training -> router -> gate -> promoted. Whatever goes wrong on the
way, the pool answers as before: what is live becomes the current revision again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict

from dylora_moe.errors import DyLoRAError, LearningInterruptedError
from dylora_moe.lifecycle.change import Stores, all_or_nothing, load_card, to_names
from dylora_moe.lifecycle.consolidating import consolidate
from dylora_moe.lifecycle.cost import estimate
from dylora_moe.lifecycle.creating import create, growth_refusals
from dylora_moe.lifecycle.gathering import Gathered, fitting, joined
from dylora_moe.lifecycle.judgement import Judgement, judge
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.names import find_skill
from dylora_moe.lifecycle.observation import Observation, observe, stored_sides
from dylora_moe.lifecycle.recipe import Order, Recipe
from dylora_moe.lifecycle.representations import compared
from dylora_moe.lifecycle.results import Cost, LearnResult, Plan
from dylora_moe.lifecycle.step import Step, finished, warn_of_name
from dylora_moe.lifecycle.telling import RunReporters
from dylora_moe.lifecycle.watch import Watch
from dylora_moe.ports import Reporter, Run
from dylora_moe.records import Arrival, Event, SkillRecord, Verdict


class Learner:
    """Learns into one live pool; the caller holds the pool's lock.

    Args:
        live: the pool in memory.
        stores: where it is kept.
        recipe: how to learn.
        watch: is told what happens.
        reporter: makes the reporter of a run from its folder.
    """

    def __init__(
        self,
        live: LivePool,
        stores: Stores,
        recipe: Recipe,
        watch: Watch,
        reporter: Callable[[Run], Reporter],
    ) -> None:
        self.live, self.stores, self.recipe = live, stores, recipe
        self.watch, self._reporter = watch, reporter

    def plan(self, arrival: Arrival) -> Plan:
        """The verdict on an arrival and what learning it would cost; nothing is changed."""
        gathered = self._fitting(arrival)
        learned = self._holder(gathered.arrival) is not None
        gathered = self._joined(gathered)
        observation, judgement = self._look(gathered.arrival)
        cost = estimate(self.live, self.stores, self.recipe, observation, judgement)
        return Plan(
            arrival=arrival.name,
            rows=observation.rows,
            tokens=observation.tokens,
            verdict=judgement.verdict,
            base_loss=judgement.base_loss,
            nearest_losses=to_names(self.live, judgement.losses),
            cost=Cost(0, 0.0, 0, 0) if learned else cost,
            waiting=gathered.waited,
        )

    def add_new_skill(self, arrival: Arrival, order: Order | None = None) -> LearnResult:
        """Learns one arrival, or says why not.

        Raises:
            DataError: rows that cannot be encoded.
            PoolError: `order.into` names no skill; a cap is reached and the person asked for more.
            TrainingError: a run that went wrong; the pool is as it was.
            LearningInterruptedError: Ctrl-C; the run is kept and resumed by the same command.
        """
        start = time.perf_counter()
        order = order or Order()
        if order.into is not None:
            find_skill(self.live.revision, order.into)
        self._tidy()
        with self._taken_back(arrival.name), closing(RunReporters(self._reporter)) as reporters:
            gathered = self._fitting(arrival)
            if not (order.into or order.as_new) and (
                told := self._already_known(gathered.arrival, start)
            ):
                called = (str(told.expert), str(told.skill))
                warn_of_name(self.watch, order, told.action, called)
                return told
            gathered = self._joined(gathered)
            observation, judgement = self._look(gathered.arrival)
            self.watch.verdict(arrival.name, judgement.verdict)
            self._record_arrival(observation, judgement, gathered.told)
            step = Step(
                live=self.live,
                stores=self.stores,
                recipe=self.recipe,
                order=order,
                watch=self.watch,
                reporter=reporters,
                observation=observation,
                judgement=judgement,
                card=load_card(self.live, self.stores.artifacts),
                key=self._key(gathered.arrival, order),
                start=start,
                waited=gathered.joined,
            )
            result = self._act(step, gathered.arrival)
            if result.action not in ("waiting", "rejected"):
                self.stores.examples.admit(list(gathered.joined))
        self.watch.result(result)
        return result

    def _act(self, step: Step, arrival: Arrival) -> LearnResult:
        order, verdict = step.order, step.judgement.verdict
        if order.into is not None:
            return consolidate(step, self.live.record(order.into).skill_id, of_verdict="known")
        if order.as_new:
            return create(step)
        if verdict.name == "unsure":
            return self._wait(step, arrival, verdict.reason)
        if verdict.name == "novel":
            refused = growth_refusals(step)
            return self._wait(step, arrival, refused) if refused else create(step)
        assert step.judgement.skill_id is not None
        return consolidate(step, step.judgement.skill_id, of_verdict=verdict.name)

    def _look(self, arrival: Arrival) -> tuple[Observation, Judgement]:
        self.watch.stage("observe", f"{len(arrival.examples)} rows of {arrival.name}")
        observation = observe(
            self.live,
            arrival,
            fraction=self.recipe.validation_fraction,
            max_length=self.recipe.max_length,
            apart=self.recipe.apart,
            granularity=self.recipe.granularity,
            progress=lambda done, total: self.watch.progress(done, total, {}),
        )
        self.watch.stage("verdict", arrival.name)
        seen = compared(self.live, observation, self.recipe.representation)
        judgement = judge(
            self.live,
            load_card(self.live, self.stores.artifacts),
            observation,
            self.recipe.detector(self.live, self.stores.registry),
            library=seen.library,
            features=seen.features,
            both=self.recipe.shape.start == "merge",
        )
        return observation, judgement

    def _fitting(self, arrival: Arrival) -> Gathered:
        """The arrival without rows that are too long, where the recipe leaves them out."""
        gathered = fitting(self.live, self.recipe, arrival)
        self._tell(gathered)
        return gathered

    def _joined(self, gathered: Gathered) -> Gathered:
        """The arrival with the waiting rows that are of its kind."""
        waiting = self.stores.examples.waiting()
        found = joined(self.live, self.recipe, gathered, waiting)
        if found.left_out != gathered.left_out:
            self._tell(found)
        return found

    def _tell(self, gathered: Gathered) -> None:
        if gathered.told is not None:
            self.watch.warning(gathered.told.message)

    def _holder(self, arrival: Arrival) -> SkillRecord | None:
        """The skill that has every row of the arrival already; None where there is none."""
        for record in self.live.revision.skills:
            stored = self.live.keys_of(record.examples + record.validation)
            if all(example.key in stored for example in arrival.examples):
                return record
        return None

    def _already_known(self, arrival: Arrival, start: float) -> LearnResult | None:
        """What to answer if every row was learned before: the same command again does nothing."""
        record = self._holder(arrival)
        if record is None:
            return None
        reason = f"all {len(arrival.examples)} rows are in skill {record.name} already"
        verdict = Verdict("known", None, None, ((record.skill_id, 0.5),), reason)
        self.watch.verdict(arrival.name, verdict)
        result = LearnResult(
            arrival=arrival.name,
            verdict=verdict,
            action="unchanged",
            expert=self.live.alias(record.expert_id),
            version=self.live.versions[record.expert_id],
            skill=record.name,
            scores=load_card(self.live, self.stores.artifacts).by_name(),
            revision=self.live.revision.number,
            run_id="",
            seconds=time.perf_counter() - start,
            message=reason,
        )
        self.watch.result(result)
        return result

    def _wait(self, step: Step, arrival: Arrival, reason: str) -> LearnResult:
        # Validation rows that the person named do not wait: learned with a later batch, they would
        # be split anew and some of them trained on.
        rows = arrival.examples
        waiting = self.stores.examples.wait(arrival.name, rows)
        numbers = {"arrival": arrival.name, "rows": len(rows)}
        self.stores.registry.record(Event("waiting", numbers, reason))
        return finished(step, "waiting", None, f"{reason}; {waiting} rows wait in the pool")

    def _record_arrival(
        self, observation: Observation, judgement: Judgement, told: Event | None
    ) -> None:
        verdict = judgement.verdict
        numbers = {
            "arrival": observation.name,
            "rows": observation.rows,
            "train_rows": len(observation.train_examples),
            "validation_rows": len(observation.validation_examples),
            "tokens": observation.tokens,
            "verdict": verdict.name,
            "reason": verdict.reason,
            "separability": asdict(verdict.separability) if verdict.separability else None,
            "fit": asdict(verdict.fit) if verdict.fit else None,
            "nearest": [list(pair) for pair in verdict.nearest],
            "nearest_losses": to_names(self.live, judgement.losses),
            "base_loss": judgement.base_loss,
            "fit_rows": judgement.rows,
            "seconds": observation.trunk_seconds,
            "detector": verdict.detector,
            "threshold": verdict.threshold,
            "similarity": {verdict.detector: verdict.nearest[0][1]} if verdict.nearest else {},
        }
        arrived = Event("arrival", numbers, verdict.reason)
        self.stores.registry.record(arrived, *([told] if told is not None else []))

    def _key(self, arrival: Arrival, order: Order) -> str:
        body = "\n".join([
            self.recipe.fingerprint, repr(order), str(self.live.revision.number),
            *(example.key for example in arrival.examples),
            "validation", *(example.key for example in arrival.validation or ()),
        ])  # fmt: skip
        return hashlib.sha256(body.encode()).hexdigest()

    @contextmanager
    def _taken_back(self, name: str) -> Iterator[None]:
        """Whatever is raised within, the pool answers as before, or as promoted where that was
        done; and it is told as it should be."""
        start = self.stores.registry.current().number
        try:
            with all_or_nothing(self.live, self.stores):
                yield
        except KeyboardInterrupt:
            raise LearningInterruptedError(
                self._promoted_since(start, name)
                or f"interrupted while learning {name}: the pool is as it was and unfinished work "
                "is kept; the same command goes on with it"
            ) from None
        except Exception as error:
            promoted = self._promoted_since(start, name)
            if promoted:
                self.watch.warning(promoted)
            else:
                self._record_error(name, error)
            raise

    def _promoted_since(self, start: int, name: str) -> str:
        """What to say of a learning that broke off after its revision was committed; else empty."""
        now = self.stores.registry.current().number
        if now <= start:
            return ""
        return f"{name} was learned (revision {now}) and interrupted while it was loaded"

    def _record_error(self, name: str, error: Exception) -> None:
        event = Event("error", {"arrival": name, "type": type(error).__name__}, str(error))
        # On a full disk this fails too, and must not hide what happened.
        with suppress(DyLoRAError):
            self.stores.registry.record(event)

    def _tidy(self) -> None:
        """Finishes what a process that died right after a promotion could not: its run is closed,
        and rows that waited and were learned wait no more."""
        unfinished = self.stores.runs.unfinished()
        if unfinished:
            done = {event.run_id for event in self.stores.registry.events("promoted")}
            for run in unfinished:
                if run.id in done:
                    run.finish()
        learned = frozenset[str]().union(*stored_sides(self.live))
        waiting = self.stores.examples.waiting()
        names = [name for name, rows in waiting if all(row.key in learned for row in rows)]
        if names:
            self.stores.examples.admit(names)
