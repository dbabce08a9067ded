"""A change of the pool on its way to a new revision: router refit, score, gate, files, commit.

Knows how what is live becomes stored; knows nothing of why the change was made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from dylora_moe.lifecycle.gate import GateDecision, decide_gate
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.recipe import Recipe
from dylora_moe.lifecycle.scorecard import Scorecard
from dylora_moe.lifecycle.scoring_pass import ScoringPass, score_pool
from dylora_moe.ports import ArtifactStore, ExampleStore, Registry, Run, RunStore
from dylora_moe.records import (
    BASE_NAME,
    Artifact,
    Event,
    Example,
    ExpertVersion,
    PoolRevision,
    SkillRecord,
)
from dylora_moe.routing import state as router_state
from dylora_moe.scoring.bootstrap import Paired


@dataclass(frozen=True, slots=True)
class Stores:
    """Everything of a pool that outlives the process, handed in through its ports."""

    registry: Registry
    artifacts: ArtifactStore
    examples: ExampleStore
    runs: RunStore


def load_card(live: LivePool, artifacts: ArtifactStore) -> Scorecard:
    """The scores of the live revision; empty before the first skill."""
    if live.revision.scores is None:
        return Scorecard({})
    return Scorecard.from_bytes(artifacts.open(live.revision.scores).read_bytes())


def weigh(
    live: LivePool,
    before: Scorecard,
    recipe: Recipe,
    *,
    changed: Collection[str] = (),
    excused: Collection[str] = (),
    pinned: Mapping[str, float] | None = None,
) -> tuple[ScoringPass, GateDecision]:
    """Scores the changed pool and asks the gate.

    Args:
        before: scores of the revision that the change starts from.
        changed: experts whose weights changed.
        excused: skills that the change is about, judged by another rule.
        pinned: as for `score_pool`.
    """
    scored = score_pool(live, before, generate=recipe.generate, changed=changed, pinned=pinned)
    names = [live.skills[skill].name for skill in excused]
    return scored, decide_gate(before.compared(scored.card), recipe.tolerance, names)


def gate_event(
    before: Scorecard,
    scored: ScoringPass,
    decision: GateDecision,
    tolerance: float,
    run_id: str | None,
) -> Event:
    """The event `gate` with every older skill's loss before and after, by name."""
    rows = before.compared(scored.card)
    return Event(
        "gate",
        {
            "promoted": decision.promoted,
            "tolerance": tolerance,
            "before": {name: _mean(pair.second, pair) for name, pair in rows.items()},
            "after": {name: _mean(pair.first, pair) for name, pair in rows.items()},
            "rises": {name: asdict(found) for name, found in decision.changes.items()},
            "rows_rescored": scored.rescored,
        },
        decision.reason,
        run_id,
    )


def _mean(losses: Sequence[float], pair: Paired) -> float:
    assert pair.weights is not None
    weighted = sum(loss * weight for loss, weight in zip(losses, pair.weights, strict=True))
    return weighted / sum(pair.weights)


def strategy_event(before: Scorecard, after: Scorecard, run_id: str | None) -> Event | None:
    """The event `strategy` if the share of inputs that mix several experts changed."""
    old, new = _mixed_share(before), _mixed_share(after)
    if old is None or new is None or abs(old - new) < 0.05:
        return None
    return Event(
        "strategy",
        {"dense_share_before": old, "dense_share_after": new},
        f"{new:.0%} of the validation inputs mix several experts, {old:.0%} before",
        run_id,
    )


def _mixed_share(card: Scorecard) -> float | None:
    rows = [row for skill in card.skills.values() for row in skill.rows]
    return sum(len(row.to) > 1 for row in rows) / len(rows) if rows else None


def store_expert(
    live: LivePool, stores: Stores, expert_id: str, card: str
) -> tuple[str, tuple[Artifact, ...]]:
    """Writes the live weights of an expert as its version's folder: path and files."""
    path = f"experts/{expert_id}/v{live.versions[expert_id]}"
    with stores.artifacts.stage() as staged:
        folder = staged / "adapter"
        live.experts.save(expert_id, folder, card)
        return path, stores.artifacts.put_folder(path, folder)


def store_skill(
    live: LivePool,
    stores: Stores,
    skill_id: str,
    name: str,
    *,
    train: Sequence[Example],
    validation: Sequence[Example],
    kept: SkillRecord | None = None,
) -> SkillRecord:
    """Writes new rows and the library's features of a skill; earlier files of `kept` stay."""
    skill = live.library[skill_id]
    version = live.versions[skill.expert_id]
    written = {
        split: (stores.examples.write(skill_id, skill.expert_id, version, rows, split),)
        for split, rows in (("train", train), ("validation", validation))
        if rows
    }
    body = skill.to_bytes()
    return SkillRecord(
        skill_id=skill_id,
        name=name,
        expert_id=skill.expert_id,
        version=kept.version + 1 if kept is not None else 1,
        count=skill.statistics.count,
        examples=(kept.examples if kept is not None else ()) + written.get("train", ()),
        features=stores.artifacts.put_bytes(f"skills/{skill_id}/{_short(body)}.safetensors", body),
        validation=(kept.validation if kept is not None else ()) + written.get("validation", ()),
    )


def commit(
    live: LivePool,
    stores: Stores,
    *,
    experts: Sequence[ExpertVersion],
    skills: Sequence[SkillRecord],
    card: Scorecard,
    arrival: str | None,
    note: str,
    numbers: Mapping[str, Any],
    events: Sequence[Event | None] = (),
    run: Run | None = None,
) -> PoolRevision:
    """Stores router and scores, commits the revision with its events, closes the run and makes
    the revision live.

    Args:
        numbers: of the event `promoted`.
        events: further ones of the same transaction. Before `promoted` where that ends what an
            arrival began; after it where it is the first to tell of the change.
        run: whose work this is.
    """
    router = router_state.to_bytes(live.router)
    scores = card.to_bytes(arrival)
    revision = PoolRevision(
        number=0,
        parent=live.revision.number,
        experts=tuple(experts),
        skills=tuple(skills),
        router=stores.artifacts.put_bytes(f"router/{_short(router)}.safetensors", router),
        scores=stores.artifacts.put_bytes(f"scores/{_short(scores)}.json", scores),
        note=note,
    )
    run_id = run.id if run is not None else None
    promoted = [Event("promoted", {"revision": next_number(stores), **numbers}, note, run_id)]
    told = [event for event in events if event is not None]
    order = told + promoted if "arrival" in numbers else promoted + told
    committed = stores.registry.commit(revision, order)
    if run is not None:
        run.finish()
    live.become(committed)
    return committed


def keeping(recipe: Recipe, card: Scorecard) -> Recipe:
    """The recipe for a change that nobody gave settings for: as many answers are generated for the
    scores as before."""
    generated = [
        sum(row.score is not None for row in skill.rows)
        for skill in card.skills.values()
        if skill.rows
    ]
    return replace(recipe, generate=max(generated, default=recipe.generate))


def next_number(stores: Stores) -> int:
    """The number that the next revision gets: exact under the pool's lock, and `commit` refuses
    if somebody else moved the pool."""
    return stores.registry.revisions()[-1].number + 1


@contextmanager
def all_or_nothing(live: LivePool, stores: Stores) -> Iterator[None]:
    """Whatever is raised within, what is live becomes the current revision again."""
    try:
        yield
    except BaseException:
        # Should it fail to be restored (a damaged file), nobody takes it for any revision.
        live.revision = replace(live.revision, number=-1)
        live.become(stores.registry.current(), dirty=live.experts.names)
        raise


def replaced(versions: Sequence[ExpertVersion], new: ExpertVersion) -> tuple[ExpertVersion, ...]:
    """The versions with the new one in the place of its expert's, or at the end."""
    found = {version.expert_id: version for version in versions}
    return tuple((found | {new.expert_id: new}).values())


def replaced_skill(records: Sequence[SkillRecord], new: SkillRecord) -> tuple[SkillRecord, ...]:
    """The records with the new one in the place of its skill's, or at the end."""
    found = {record.skill_id: record for record in records}
    return tuple((found | {new.skill_id: new}).values())


def to_names(live: LivePool, losses: Mapping[str, float]) -> dict[str, float]:
    """Losses by expert id as losses by alias."""
    return {e if e == BASE_NAME else live.alias(e): loss for e, loss in losses.items()}


def _short(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:16]
