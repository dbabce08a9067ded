"""Learns unlabelled mixed rows: sorted first, then each kind as an arrival of its own.

Rows of a known skill arrive under its name, a cluster of strange ones under the traffic's name with
a number; both get the verdict that any arrival gets. What is too little for one waits in the pool
and is sorted again with the next traffic.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from dylora_moe.errors import DataError
from dylora_moe.lifecycle.change import load_card
from dylora_moe.lifecycle.gathering import TRAFFIC, Gathered, fitting
from dylora_moe.lifecycle.learner import Learner
from dylora_moe.lifecycle.observation import stored_sides
from dylora_moe.lifecycle.results import Action, Cost, LearnResult, Plan
from dylora_moe.lifecycle.traffic import Enough, Sorted, sort_traffic
from dylora_moe.records import Arrival, Event, Example, Verdict, VerdictName
from dylora_moe.skills.clustering import MOST_ROWS

PIECE = MOST_ROWS // 2
"""Rows that are sorted at a time; as many again may come from those that waited."""


def learn_mixed(learner: Learner, arrival: Arrival) -> list[LearnResult]:
    """Learns traffic: a result for every kind of rows in it, and one for what waits.

    Of more than `PIECE` rows each piece is sorted by what the pool learned from those before.

    Raises:
        DataError: validation rows were named, whose skills nobody knows; or rows that cannot be
            encoded.
        TrainingError, LearningInterruptedError: as of `Learner.add_new_skill`; the rows that were
            not learned yet come again with the same command.
    """
    gathered = _fitting(learner, arrival)
    if gathered.told is not None:
        learner.stores.registry.record(gathered.told)
    return [result for piece in _pieces(gathered.arrival) for result in _learn(learner, piece)]


def plan_mixed(learner: Learner, arrival: Arrival) -> list[Plan]:
    """The verdict on every kind of rows in traffic, by what the pool has now, and its cost; nothing
    is changed.

    Raises:
        DataError: as `learn_mixed`.
    """
    plans = []
    for piece in _pieces(_fitting(learner, arrival).arrival):
        found = _sorted(learner, piece).found
        for skill, part in found.claimed:
            plans.append(learner.plan(Arrival(learner.live.record(skill).name, part)))
        for number, cluster in enumerate(found.clusters, 1):
            plans.append(learner.plan(Arrival(f"{arrival.name}-{number}", cluster)))
        if found.waiting:
            verdict = Verdict("unsure", None, None, (), _too_few(found))
            nothing = Cost(0, 0.0, 0, 0)
            plans.append(Plan(arrival.name, len(found.waiting), 0, verdict, None, {}, nothing))
    return plans


def _fitting(learner: Learner, arrival: Arrival) -> Gathered:
    if arrival.validation is not None:
        raise DataError(
            f"{arrival.name}: rows to validate on cannot be named for mixed rows, since nobody "
            "knows whose they are; leave them out, and a share of each skill's rows is held out"
        )
    gathered = fitting(learner.live, learner.recipe, arrival)
    if gathered.told is not None:
        learner.watch.warning(gathered.told.message)
    return gathered


def _pieces(arrival: Arrival) -> list[Arrival]:
    rows = arrival.examples
    starts = range(0, len(rows), PIECE)
    return [Arrival(arrival.name, rows[start : start + PIECE]) for start in starts]


@dataclass(frozen=True)
class _Sorting:
    """How traffic was sorted.

    Attributes:
        rows: how many were, with those that waited.
        found: what they are.
        waited: what waited before, all of it.
        left: of these the rows that were not looked at; they go on waiting.
        apart: rows from which on a claim is of one kind by itself.
    """

    rows: int
    found: Sorted
    waited: list[Example]
    left: list[Example]
    apart: int


def _sorted(learner: Learner, arrival: Arrival) -> _Sorting:
    live, recipe, stores = learner.live, learner.recipe, learner.stores
    waited = dict(stores.examples.waiting()).get(TRAFFIC, [])
    # The oldest that nothing like them ever came to must not crowd out what is new.
    left, again = waited[:-PIECE], waited[-PIECE:]
    if recipe.drop_long:
        # They may have come when longer rows were allowed.
        again, longer = live.within(again, live.limit(recipe.max_length))
        left = [*left, *longer]
    rows = _unlearned(learner, [*again, *arrival.examples])
    learner.watch.stage("sort", f"{len(rows)} rows of {arrival.name}")
    limits = recipe.detector(live, stores.registry).limits
    enough = Enough(limits.samples, limits.for_more.samples)
    found = sort_traffic(live, rows, recipe.traffic, enough=enough, max_length=recipe.max_length)
    return _Sorting(len(rows), found, waited, left, enough.apart)


def _learn(learner: Learner, arrival: Arrival) -> list[LearnResult]:
    live, stores = learner.live, learner.stores
    start, name = time.perf_counter(), arrival.name
    sorting = _sorted(learner, arrival)
    rows, found = sorting.rows, sorting.found
    stores.registry.record(_event(learner, name, rows, found))
    kinds = [Arrival(live.record(skill).name, part) for skill, part in found.claimed]
    results = [learner.add_new_skill(kind) for kind in kinds]
    for cluster in found.clusters:
        kinds.append(Arrival(_free(learner, name), cluster))
        results.append(learner.add_new_skill(kinds[-1]))
    _let_wait(learner, sorting, list(zip(kinds, results, strict=True)))
    if found.waiting:
        results.append(_rest(learner, name, "unsure", "waiting", _too_few(found), start))
    elif not rows:
        reason = f"all {len(arrival.examples)} rows are learned already"
        results.append(_rest(learner, name, "known", "unchanged", reason, start))
    return results


def _let_wait(
    learner: Learner, sorting: _Sorting, learned: Sequence[tuple[Arrival, LearnResult]]
) -> None:
    """Writes what waits from now on. Whenever it breaks off, each row waits at least once."""
    examples = learner.stores.examples
    before = {row.key for row in sorting.waited}
    still = [*_unlearned(learner, sorting.left), *sorting.found.waiting]
    for kind, result in learned:
        if result.action == "waiting":
            # Rows that waited among the traffic could not be told to wait as this kind before.
            there = dict(examples.waiting()).get(kind.name, [])
            if len(kind.examples) < sorting.apart:
                # Of several clusters: each row is to be looked at again by itself.
                own = {row.key for row in kind.examples}
                examples.keep(kind.name, [row for row in there if row.key not in own])
                still += kind.examples
            else:
                examples.keep(kind.name, [*there, *kind.examples])
        elif result.action == "rejected":
            still += [row for row in kind.examples if row.key in before]
    # Only now: had the learning broken off, all that waited would wait still.
    examples.keep(TRAFFIC, still)


def _too_few(found: Sorted) -> str:
    return f"{len(found.waiting)} rows are too few of any kind; they wait in the pool"


def _unlearned(learner: Learner, rows: Sequence[Example]) -> list[Example]:
    """Each row once, without those that some skill has."""
    learned = frozenset[str]().union(*stored_sides(learner.live))
    return list({row.key: row for row in rows if row.key not in learned}.values())


def _free(learner: Learner, name: str) -> str:
    """The traffic's name with the first number that no skill and no expert has."""
    revision = learner.live.revision
    used = {version.alias for version in revision.experts}
    used |= {record.name for record in revision.skills}
    used |= {waiting for waiting, _ in learner.stores.examples.waiting()}
    return next(n for n in (f"{name}-{i}" for i in itertools.count(1)) if n not in used)


def _event(learner: Learner, name: str, rows: int, found: Sorted) -> Event:
    known = [(learner.live.record(skill).name, len(part)) for skill, part in found.claimed]
    clusters = [len(cluster) for cluster in found.clusters]
    told = (
        f"{name}: {rows} rows, {sum(count for _, count in known)} of known skills, "
        f"{sum(clusters)} in {len(clusters)} new clusters, {len(found.waiting)} wait"
    )
    numbers = {
        "traffic": name,
        "rows": rows,
        "strange": found.strange,
        "overruled": found.overruled,
        "known": known,
        "clusters": clusters,
        "waiting": len(found.waiting),
    }
    return Event("sorted", numbers, told)


def _rest(
    learner: Learner, name: str, verdict: VerdictName, action: Action, reason: str, start: float
) -> LearnResult:
    result = LearnResult(
        arrival=name,
        verdict=Verdict(verdict, None, None, (), reason),
        action=action,
        expert=None,
        version=None,
        skill=None,
        scores=load_card(learner.live, learner.stores.artifacts).by_name(),
        revision=learner.live.revision.number,
        run_id="",
        seconds=time.perf_counter() - start,
        message=reason,
    )
    learner.watch.result(result)
    return result
