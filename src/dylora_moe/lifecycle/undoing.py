"""Taking steps back: an expert's last version, the pool's last step, an expert altogether.

Nothing is deleted: each is a new pointer or a new revision, so it can be undone itself.
"""

from __future__ import annotations

from dataclasses import replace

from dylora_moe.errors import PoolError
from dylora_moe.lifecycle.change import (
    Stores,
    adapt_router,
    commit,
    load_card,
    replaced,
    weigh,
)
from dylora_moe.lifecycle.creating import free_name
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.recipe import Recipe
from dylora_moe.records import Event, PoolRevision


def step_back(stores: Stores) -> PoolRevision:
    """Points the pool at the revision before the current one.

    Raises:
        PoolError: there is nothing to undo.
    """
    current = stores.registry.current()
    if current.parent is None or current.parent == 0:
        raise PoolError("the pool has no step to take back: nothing was learned yet")
    numbers = {"action": "rolled back", "revision": current.parent, "from": current.number}
    note = f"rolled back from revision {current.number} to {current.parent}"
    return stores.registry.move_to(current.parent, Event("promoted", numbers, note))


def roll_back_expert(live: LivePool, stores: Stores, recipe: Recipe, name: str) -> PoolRevision:
    """Puts an expert's version before its current one back into service.

    Its skills keep their statistics, which describe inputs and not answers.

    Raises:
        PoolError: no such expert, or it has no earlier version.
    """
    current = live.version(name)
    earlier = [
        v for v in stores.registry.versions(current.expert_id) if v.version < current.version
    ]
    if not earlier:
        raise PoolError(
            f"{current.alias} has no version before v{current.version}; take it out altogether "
            "with: dylora experts remove"
        )
    target = replace(earlier[-1], alias=current.alias)
    revision = replace(live.revision, experts=replaced(live.revision.experts, target))
    return _recommit(
        live,
        stores,
        recipe,
        revision,
        "rolled back",
        f"{current.alias} rolled back from v{current.version} to v{target.version}",
        current.alias,
        target.version,
    )


def remove_expert(live: LivePool, stores: Stores, recipe: Recipe, name: str) -> PoolRevision:
    """Takes an expert and the skills it serves out of the pool and refits the router.

    Raises:
        PoolError: no such expert.
    """
    gone = live.version(name)
    for record in live.revision.skills:
        if record.expert_id == gone.expert_id:
            live.router.remove(record.skill_id, live.library[record.skill_id].statistics)
            live.library.remove(record.skill_id)
            del live.skills[record.skill_id]
    revision = replace(
        live.revision,
        experts=tuple(v for v in live.revision.experts if v.expert_id != gone.expert_id),
        skills=tuple(r for r in live.revision.skills if r.expert_id != gone.expert_id),
    )
    live.experts.remove(gone.expert_id)
    adapt_router(live, recipe)
    before = load_card(live, stores.artifacts)
    scored, _ = weigh(live, before, recipe)
    return commit(
        live,
        stores,
        experts=revision.experts,
        skills=revision.skills,
        card=scored.card,
        arrival=None,
        note=f"removed {gone.alias}",
        numbers={"action": "removed", "expert": gone.alias, "version": gone.version},
    )


def rename_expert(live: LivePool, stores: Stores, old: str, new: str) -> PoolRevision:
    """Moves an expert's alias; its id, files and skills stay.

    Raises:
        PoolError: no such expert, or the name is taken or unusable.
    """
    version = live.version(old)
    if free_name(live, new) != new:
        raise PoolError(f"'{new}' is taken or no plain name; choose another one")
    revision = replace(
        live.revision,
        number=0,
        parent=live.revision.number,
        experts=replaced(live.revision.experts, replace(version, alias=new)),
        note=f"renamed {version.alias} to {new}",
        created_at="",
    )
    numbers = {"action": "renamed", "expert": new, "version": version.version}
    committed = stores.registry.commit(revision, [Event("promoted", numbers, revision.note)])
    live.become(committed)
    return committed


def _recommit(
    live: LivePool,
    stores: Stores,
    recipe: Recipe,
    revision: PoolRevision,
    action: str,
    note: str,
    alias: str,
    version: int,
) -> PoolRevision:
    before, parent = load_card(live, stores.artifacts), live.revision
    live.become(revision)
    scored, _ = weigh(live, before, recipe)
    live.revision = parent
    return commit(
        live,
        stores,
        experts=revision.experts,
        skills=revision.skills,
        card=scored.card,
        arrival=None,
        note=note,
        numbers={"action": action, "expert": alias, "version": version},
    )
