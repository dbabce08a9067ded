"""Taking steps back: an expert's last version, the pool's last step, an expert altogether.

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
from dylora_moe.records import Event, ExpertVersion, PoolRevision
from dylora_moe.skills.library import Skill


def step_back(stores: Stores) -> PoolRevision:
    """Points the pool at the revision before the current one.

    Raises:
        PoolError: there is nothing to undo.
    """
    current = stores.registry.current()
    if current.parent is None:
        raise PoolError("the pool has no step to take back: it is as it was made")
    numbers = {"action": "rolled back", "revision": current.parent, "from": current.number}
    note = f"rolled back from revision {current.number} to {current.parent}"
    return stores.registry.move_to(current.parent, Event("promoted", numbers, note))


def roll_back_expert(live: LivePool, stores: Stores, recipe: Recipe, name: str) -> PoolRevision:
    """Puts the version that an expert's current one was trained from back into service.

    Its skills keep their statistics, which describe inputs and not answers. The current version
    need not be live, nor even readable.

    Raises:
        PoolError: no such expert, or it has no earlier version.
    """
    now = stores.registry.current()
    current = find_expert(now, name)
    target = replace(_before(stores, current), alias=current.alias)
    with all_or_nothing(live, stores):
        live.become(replace(now, experts=replaced(now.experts, target)))
        before = load_card(live, stores.artifacts)
        scored, _ = weigh(live, before, keeping(recipe, before))
        return commit(
            live,
            stores,
            experts=live.revision.experts,
            skills=live.revision.skills,
            card=scored.card,
            arrival=None,
            note=f"{current.alias} rolled back from v{current.version} to v{target.version}",
            numbers={"action": "rolled back", "expert": current.alias, "version": target.version},
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
        began = time.perf_counter()
        routed = router_event(live, adapt_router(live, kept), time.perf_counter() - began, None)
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
