"""The pool at a glance, out of its registry: experts with their versions, scores after each change.

Knows what is stored; loads no model and knows no HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from dylora_moe.lifecycle.scorecard import Scorecard
from dylora_moe.records import ExpertVersion, PoolRevision
from dylora_moe.scoring.matrix import average_accuracy

if TYPE_CHECKING:
    from dylora_moe.build.reader import PoolReader

ROWS = 60
"""Changes of a pool that are looked back at."""

Values = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """A version of an expert that was ever promoted; `parents` as `expert_id@version`."""

    version: int
    maturity: float
    created_at: str
    parents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExpertSummary:
    """An expert of the current revision.

    Attributes:
        version: that is in service.
        maturity: 0 to 1.
        state: young, growing or mature.
        rank: of its matrices; None where it is not known.
        skills: names of the skills whose inputs go to it.
        count: rows that it learned of them.
        born: when its first version was promoted, ISO 8601.
        versions: oldest first.
    """

    id: str
    alias: str
    version: int
    maturity: float
    state: str
    rank: int | None
    skills: tuple[str, ...]
    count: int
    born: str
    versions: tuple[VersionSummary, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """What a pool is now.

    Attributes:
        name: what clients call it.
        base: the frozen model.
        format: of prompts, `plain` or `chat`.
        tap: blocks below it are never adapted.
        revision: number of the current one; `note` and `created_at` are its own.
        experts: oldest first.
    """

    name: str
    base: str
    format: str
    tap: int
    revision: int
    note: str
    created_at: str
    experts: tuple[ExpertSummary, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A revision with scores of its own."""

    revision: int
    note: str
    created_at: str


@dataclass(frozen=True, slots=True)
class Scores:
    """The accuracy matrix and the loss matrix along the line that led to the current revision.

    Attributes:
        changes: the rows, oldest first; at most `ROWS`, of which the latest.
        skills: names of the columns, in order of appearance.
        accuracy: mean score of generated answers, 0 to 1; None where it was not measured.
        loss: token-mean answer loss, nats.
        average_accuracy: over the skills after the last change.
        more: whether there are earlier changes.
    """

    changes: tuple[Change, ...]
    skills: tuple[str, ...]
    accuracy: Values
    loss: Values
    average_accuracy: float | None
    more: bool


def overview(pool: PoolReader, name: str) -> Overview:
    """Reads the current revision."""
    revision, meta, base = pool.revision, pool.meta, str(pool.meta["base"])
    return Overview(
        name=name,
        # Of a folder or a file its name: where it lies is nobody's business.
        base=PurePath(base).name if PurePath(base).is_absolute() else base,
        format=str(meta["format"]),
        tap=int(meta["tap"]),
        revision=revision.number,
        note=revision.note,
        created_at=revision.created_at,
        experts=tuple(_expert(pool, revision, expert) for expert in revision.experts),
    )


def _expert(pool: PoolReader, revision: PoolRevision, expert: ExpertVersion) -> ExpertSummary:
    versions = pool.registry.versions(expert.expert_id)
    skills = [skill for skill in revision.skills if skill.expert_id == expert.expert_id]
    rank = expert.lora_config.get("r")
    return ExpertSummary(
        id=expert.expert_id,
        alias=expert.alias,
        version=expert.version,
        maturity=expert.maturity,
        state=expert.maturity_state,
        rank=rank if isinstance(rank, int) else None,
        skills=tuple(skill.name for skill in skills),
        count=sum(skill.count for skill in skills),
        born=(versions[0] if versions else expert).created_at,
        versions=tuple(
            VersionSummary(one.version, one.maturity, one.created_at, one.parents)
            for one in versions
        ),
    )


def scores(pool: PoolReader, rows: int = ROWS) -> Scores:
    """The matrices up to the current revision; what was rolled back is not on its line.

    Raises:
        ArtifactError: scores are missing or damaged.
    """
    line = [found for found, _ in zip(_scored(pool), range(rows + 1), strict=False)]
    changes, cards = [], []
    for revision in reversed(line[:rows]):
        assert revision.scores is not None
        cards.append(Scorecard.from_bytes(pool.artifacts.open(revision.scores).read_bytes()))
        changes.append(Change(revision.number, revision.note, revision.created_at))
    names = {key: card.name for one in cards for key, card in one.skills.items()}
    names |= {s.skill_id: s.name for s in pool.revision.skills if s.skill_id in names}
    accuracy, loss = _matrices(cards, tuple(names))
    return Scores(
        changes=tuple(changes),
        skills=tuple(names.values()),
        accuracy=accuracy,
        loss=loss,
        average_accuracy=average_accuracy(accuracy),
        more=len(line) > rows,
    )


def _scored(pool: PoolReader) -> Iterator[PoolRevision]:
    """Revisions whose scores are not those of the one before, latest first."""
    later: PoolRevision | None = None
    number: int | None = pool.revision.number
    while number is not None:
        revision = pool.registry.revision(number)
        if later is not None and later.scores not in (None, revision.scores):
            yield later
        later, number = revision, revision.parent
    if later is not None and later.scores is not None:
        yield later


def _matrices(cards: Sequence[Scorecard], skills: Sequence[str]) -> tuple[Values, Values]:
    accuracy, loss = [], []
    for card in cards:
        found = [card.skills.get(skill) for skill in skills]
        accuracy.append(tuple(None if one is None else one.accuracy for one in found))
        # Without validation rows there is no loss.
        loss.append(
            tuple(None if one is None or math.isnan(one.loss) else one.loss for one in found)
        )
    return tuple(accuracy), tuple(loss)
