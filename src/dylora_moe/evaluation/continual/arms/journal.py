"""What the pool made of each batch, and what that says of a stream's borders.

Knows results of learning and the truth of a stream; knows no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dylora_moe.evaluation.continual.streams import BLUR, Stream
from dylora_moe.lifecycle.results import LearnResult
from dylora_moe.ports import Registry


@dataclass(frozen=True, slots=True)
class Arrived:
    """One batch.

    Attributes:
        batch: counted from 0.
        action: what became of it; of its parts the one that made an expert, else the largest.
        expert: id of the expert that this was, and its version; None where no part changed one.
        skills: its rows by true skill.
        tokens: real tokens trained on, runs that were thrown away included.
        seconds: of learning.
        waiting: rows, of this batch and earlier ones, that were too few of any kind to be sorted
            out; those of a kind that waits under its own name are not among them.
        parts: each arrival that the pool made of it and that changed it, with its rows, verdict,
            action, expert and version.
    """

    batch: int
    action: str
    expert: str | None
    version: int | None
    skills: Mapping[str, int]
    tokens: int
    seconds: float
    waiting: int = 0
    parts: Sequence[Mapping[str, Any]] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {**asdict(self), "parts": [dict(one) for one in self.parts]}

    @property
    def made(self) -> tuple[str, ...]:
        """Ids of the experts that were made of it."""
        return tuple(one["expert"] for one in self.parts if one["action"] == "created")

    @property
    def most(self) -> str:
        """The true skill of most of its rows."""
        return max(self.skills, key=lambda skill: self.skills[skill])


def name_of(batch: int) -> str:
    """What a batch is called: nothing that would tell its skill."""
    return f"batch-{batch:04d}"


def arrived(
    batch: int,
    results: Sequence[LearnResult],
    registry: Registry,
    truth: Mapping[str, int],
    tokens: int,
    seconds: float,
    expert_of: Callable[[str], str],
) -> Arrived:
    """The record of a batch that the pool sorted, and of which it made arrivals of its own.

    What became of them is read off the pool's events since it sorted the batch: some may have been
    learned by an earlier process.

    Args:
        batch: counted from 0.
        results: of learning what was left of it; at least one.
        registry: of the pool.
        truth: its rows by true skill.
        tokens: real tokens trained on.
        seconds: of learning.
        expert_of: an expert's id by what the pool calls it.
    """
    parts, seen, here, waiting = [], dict[str, Mapping[str, Any]](), False, 0
    for event in registry.events():
        told = event.numbers
        if event.kind == "sorted":
            here = told["traffic"] == name_of(batch)
            waiting = int(told["waiting"]) if here else waiting
        elif here and event.kind == "arrival":
            seen[told["arrival"]] = told
        elif here and event.kind == "promoted":
            arrival = seen.get(told["arrival"], {})
            parts.append({
                "arrival": told["arrival"],
                "rows": arrival.get("rows", 0),
                "verdict": arrival.get("verdict"),
                "action": told["action"],
                "expert": expert_of(told["expert"]),
                "version": told["version"],
            })  # fmt: skip
    made = [one for one in parts if one["action"] == "created"]
    main = max(made or parts, key=lambda one: one["rows"], default=None)
    return Arrived(
        batch,
        str(results[-1].action if main is None else main["action"]),
        None if main is None else str(main["expert"]),
        None if main is None else int(main["version"]),
        dict(truth),
        tokens,
        seconds,
        waiting,
        tuple(parts),
    )


def true_skills(stream: Stream) -> list[Counter[str]]:
    """The rows of each batch by true skill."""
    owner = stream.truth.skill_of
    return [Counter(owner[row.key] for row in batch) for batch in stream.batches]


def new_for_returning(
    stream: Stream, told: Sequence[Arrived], owners: Mapping[str, str]
) -> int | None:
    """How many experts were made for a skill since it came back; None where none returns.

    An expert is for the skill of most of the rows that it is kept with: rows that waited may have
    become one in a batch of others'.

    Args:
        stream: with the truth.
        told: what became of each batch.
        owners: true skill of each expert, by id; of one that is no longer there, that of most rows
            of the batch it was made of.
    """
    truth = stream.truth
    if not truth.returns:
        return None
    back: dict[str, int] = {}
    for visit in truth.visits:
        if visit.start in truth.returns:
            back.setdefault(visit.skill, stream.batch_of(visit.start))
    made = [(one.batch, owners.get(expert, one.most)) for one in told for expert in one.made]
    return sum(batch >= back[skill] for batch, skill in made if skill in back)


def borders(stream: Stream, told: Sequence[Arrived]) -> dict[str, Any] | None:
    """The true borders and those that the pool sees, in batches, with the window in which they
    match; None where the stream has none.

    A batch is a border where a part of it was *novel* or *covered*, or where another expert learned
    from it than from the one before. A border within a batch may be seen only at the next one, of
    which all rows are the new skill's.
    """
    if not stream.truth.borders:
        return None
    detected, before = [], None
    for one in told:
        moved = one.expert is not None and before is not None and one.expert != before
        new = any(part["verdict"] in ("novel", "covered") for part in one.parts)
        if before is not None and (moved or new):
            detected.append(one.batch)
        before = one.expert or before
    first = stream.truth.visits[0]
    rows, size = first.stop - first.start, len(stream.batches[0])
    mixed = -(-(rows // 4) // size) if stream.kind.startswith("blurred") and BLUR else 0
    within = any(border not in stream.starts for border in stream.truth.borders)
    return {
        "true": list(stream.border_batches),
        "detected": detected,
        # Before the next border comes, if that leaves time to see this one.
        "tolerance": max(within, rows // size - 1 - mixed),
        "early": mixed,
    }
