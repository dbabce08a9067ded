"""Taking steps back: an expert's last version, or any; the pool's last step; an expert altogether.

Nothing is deleted: each is a new pointer or a new revision, so it can be undone itself.
"""

from __future__ import annotations

import time
from dataclasses import replace

from dylora_moe.errors import PoolError
from dylora_moe.lifecycle.change import (
    Stores,
    all_or_nothing,
    commit,
    keeping,
    load_card,
    next_number,
    replaced,
    weigh,
)
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.names import checked_name, find_expert
from dylora_moe.lifecycle.recipe import Recipe
from dylora_moe.lifecycle.router_change import adapt_router, router_event
from dylora_moe.records import Event, ExpertVersion, PoolRevision, SkillRecord
from dylora_moe.skills.library import Skill


def step_back(stores: Stores) -> PoolRevision:
    """Points the pool at the revision before the current one.

    Rows that had waited and were learned in that step do not wait again; the event names them.

    Raises:
        PoolError: there is nothing to undo.
    """
    current = stores.registry.current()
    if current.parent is None:
        raise PoolError("the pool has no step to take back: it is as it was made")
    waited = _waited(stores, current.number)
    numbers = {
        "action": "rolled back",
        "revision": current.parent,
        "from": current.number,
        "waited": waited,
    }
    note = f"rolled back from revision {current.number} to {current.parent}"
    if waited:
        lost = ", ".join(f"{name} ({rows} rows)" for name, rows in waited.items())
        note += f"; what had waited for that step must be brought again: {lost}"
    return stores.registry.move_to(current.parent, Event("promoted", numbers, note))


def roll_back_expert(live: LivePool, stores: Stores, recipe: Recipe, name: str) -> PoolRevision:
    """Puts the version that an expert's current one was trained from back into service.

    Its skills get back the rows of that time, which the version answers, and keep their statistics,
    which describe inputs and not answers. The current version need not be live, nor even readable.

    Raises:
        PoolError: no such expert, or it has no earlier version.
    """
    current = find_expert(stores.registry.current(), name)
    target = _before(stores, current)
    note = f"{current.alias} rolled back from v{current.version} to v{target.version}"
    return _put(live, stores, recipe, current, target, note, "rolled back")


def put_back(
    live: LivePool,
    stores: Stores,
    recipe: Recipe,
    name: str,
    version: int,
    instead_of: int | None = None,
) -> PoolRevision:
    """Puts any version of an expert that was ever in service back into it, older or newer than the
    current one; else as `roll_back_expert`.

    Args:
        instead_of: the version that it is to replace; whichever is in service where None.

    Raises:
        PoolError: no such expert, no such version of it, it is in service, or another than
            `instead_of` is.
    """
    current = find_expert(stores.registry.current(), name)
    if instead_of is not None and current.version != instead_of:
        raise PoolError(
            f"v{instead_of} of {current.alias} is not in service any more, v{current.version} is; "
            "nothing was changed"
        )
    known = {one.version: one for one in stores.registry.versions(current.expert_id)}
    if version not in known:
        there = ", ".join(f"v{number}" for number in known)
        raise PoolError(f"{current.alias} has no v{version}; there are: {there}")
    if version == current.version:
        raise PoolError(f"v{version} of {current.alias} is in service already; name another one")
    note = f"{current.alias} put back from v{current.version} to v{version}"
    return _put(live, stores, recipe, current, known[version], note, "put back")


def _put(
    live: LivePool,
    stores: Stores,
    recipe: Recipe,
    current: ExpertVersion,
    target: ExpertVersion,
    note: str,
    action: str,
) -> PoolRevision:
    """Puts a version of an expert into the place of its current one."""
    now = stores.registry.current()
    target = replace(target, alias=current.alias)
    with all_or_nothing(live, stores):
        skills = _rows_of_then(stores, now, target)
        live.become(replace(now, experts=replaced(now.experts, target), skills=skills))
        before = load_card(live, stores.artifacts)
        scored, _ = weigh(live, before, keeping(recipe, before))
        return commit(
            live,
            stores,
            experts=live.revision.experts,
            skills=live.revision.skills,
            card=scored.card,
            arrival=None,
            note=note,
            numbers={"action": action, "expert": current.alias, "version": target.version},
        )


def remove_expert(live: LivePool, stores: Stores, recipe: Recipe, name: str) -> PoolRevision:
    """Takes an expert and the skills it serves out of the pool and refits the router.

    The expert need not be live, nor even readable.

    Raises:
        PoolError: no such expert.
    """
    now = stores.registry.current()
    gone = find_expert(now, name)
    served = [record for record in now.skills if record.expert_id == gone.expert_id]
    with all_or_nothing(live, stores):
        statistics = {
            record.skill_id: Skill.from_bytes(
                stores.artifacts.open(record.features).read_bytes()
            ).statistics
            for record in served
        }
        live.become(
            replace(
                now,
                experts=tuple(v for v in now.experts if v.expert_id != gone.expert_id),
                skills=tuple(record for record in now.skills if record not in served),
            )
        )
        for skill_id, found in statistics.items():
            live.router.remove(skill_id, found)
        before = load_card(live, stores.artifacts)
        kept = keeping(recipe, before)
        routed = _refit(live, kept)
        scored, _ = weigh(live, before, kept)
        return commit(
            live,
            stores,
            experts=live.revision.experts,
            skills=live.revision.skills,
            card=scored.card,
            arrival=None,
            note=f"removed {gone.alias}",
            numbers={"action": "removed", "expert": gone.alias, "version": gone.version},
            events=[routed],
        )


def rename_expert(stores: Stores, old: str, new: str) -> PoolRevision:
    """Moves an expert's alias; its id, files and skills stay.

    Raises:
        PoolError: no such expert, or the name is taken or unusable.
    """
    current = stores.registry.current()
    version = find_expert(current, old)
    alias = checked_name(current, new, of=version.expert_id)
    revision = replace(
        current,
        number=0,
        parent=current.number,
        experts=replaced(current.experts, replace(version, alias=alias)),
        note=f"renamed {version.alias} to {alias}",
        created_at="",
    )
    numbers = {
        "revision": next_number(stores),
        "action": "renamed",
        "expert": alias,
        "version": version.version,
    }
    return stores.registry.commit(revision, [Event("promoted", numbers, revision.note)])


def _waited(stores: Stores, number: int) -> dict[str, int]:
    """The batches that had waited until the step to this revision learned them, with their rows."""
    for event in reversed(stores.registry.events("promoted")):
        if event.numbers["revision"] == number and "from" not in event.numbers:
            return dict(event.numbers.get("waited", {}))
    return {}


def _refit(live: LivePool, recipe: Recipe) -> Event | None:
    """Fits the router on the skills that are left; none left, it is as the pool was made with."""
    if not live.router.rows:
        old = live.router
        live.model.router = live.fresh_router(like=old)
        return None
    began = time.perf_counter()
    return router_event(live, adapt_router(live, recipe), time.perf_counter() - began, None)


def _rows_of_then(
    stores: Stores, now: PoolRevision, target: ExpertVersion
) -> tuple[SkillRecord, ...]:
    """The skills as they are, those of the target's expert with the rows that they had when the
    target was last in service; skills that came after it keep theirs."""
    then: PoolRevision | None = now
    while then is not None and not _serves(then, target):
        then = None if then.parent is None else stores.registry.revision(then.parent)
    if then is None:
        # The pool went back to before it was made: then it is on no way from here to the start.
        then = next(r for r in reversed(stores.registry.revisions()) if _serves(r, target))
    old = {r.skill_id: r for r in then.skills if r.expert_id == target.expert_id}
    return tuple(
        replace(
            record,
            version=record.version + 1,
            examples=old[record.skill_id].examples,
            validation=old[record.skill_id].validation,
        )
        if record.skill_id in old
        else record
        for record in now.skills
    )


def _serves(revision: PoolRevision, target: ExpertVersion) -> bool:
    return any(version.ref == target.ref for version in revision.experts)


def _before(stores: Stores, current: ExpertVersion) -> ExpertVersion:
    """The version it was trained from: not merely the number below, which may have been rolled
    back from."""
    for version in stores.registry.versions(current.expert_id):
        if version.ref in current.parents:
            return version
    raise PoolError(
        f"{current.alias} has no version before v{current.version}; take it out altogether "
        f"with: dylora experts remove POOL {current.alias}"
    )
