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
from dylora_moe.records import Verdict


@dataclass(frozen=True, slots=True)
class Arrived:
    """One batch.

    Attributes:
        batch: counted from 0.
        verdict: its name.
        separability, fit: points of the verdict's two axes; None where not measured.
        action: what became of it.
        expert: id of the expert that it went to, and its version; None where it went to none.
        skills: its rows by true skill.
        tokens: real tokens trained on, runs that were thrown away included.
        seconds: of learning.
        parts: of mixed rows, each arrival that the pool made of them and that changed it, with its
            action, expert and version; then the batch has no expert of its own.
    """

    batch: int
    verdict: str
    separability: float | None
    fit: float | None
    action: str
    expert: str | None
    version: int | None
    skills: Mapping[str, int]
    tokens: int
    seconds: float
    parts: Sequence[Mapping[str, Any]] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @property
    def made(self) -> tuple[str, ...]:
        """Ids of the experts that were made of it."""
        if self.parts:
            return tuple(one["expert"] for one in self.parts if one["action"] == "created")
        return (self.expert,) if self.action == "created" and self.expert else ()

    @property
    def most(self) -> str:
        """The true skill of most of its rows."""
        return max(self.skills, key=lambda skill: self.skills[skill])


def name_of(batch: int) -> str:
    """What a batch is called: nothing that would tell its skill."""
    return f"batch-{batch:04d}"


def arrived(
    batch: int,
    result: LearnResult,
    registry: Registry,
    truth: Mapping[str, int],
    tokens: int,
    expert_of: Callable[[str], str],
) -> Arrived:
    """The record of a batch.

    A batch that an earlier process learned, and did not live to write down, is answered with
    *unchanged*: then the pool's own events tell what became of it.

    Args:
        batch: counted from 0.
        result: of learning it.
        registry: of the pool.
        truth: its rows by true skill.
        tokens: real tokens trained on.
        expert_of: an expert's id by what the pool calls it.
    """
    verdict, action, seconds = result.verdict, str(result.action), result.seconds
    first = _axes(verdict)
    name = verdict.name
    expert, version = result.expert, result.version
    if action == "unchanged":
        for event in registry.events():
            if event.numbers.get("arrival") != name_of(batch):
                continue
            if event.kind == "arrival":
                name = event.numbers["verdict"]
                first = tuple(
                    None if event.numbers[axis] is None else float(event.numbers[axis]["value"])
                    for axis in ("separability", "fit")
                )
            elif event.kind == "promoted":
                action, seconds = event.numbers["action"], event.numbers["seconds"]
                expert, version = event.numbers["expert"], event.numbers["version"]
    return Arrived(
        batch,
        name,
        first[0],
        first[1],
        action,
        None if expert is None else expert_of(expert),
        version,
        dict(truth),
        tokens,
        seconds,
    )


def sorted_out(
    batch: int,
    results: Sequence[LearnResult],
    registry: Registry,
    truth: Mapping[str, int],
    tokens: int,
    expert_of: Callable[[str], str],
) -> Arrived:
    """The record of a batch of mixed rows, of which the pool makes arrivals of its own.

    What became of them is read off the pool's events since it sorted the batch: some may have been
    learned by an earlier process.

    Args:
        batch, registry, truth, tokens, expert_of: as `arrived`.
        results: of learning what was left of it; at least one.
    """
    parts, here = [], False
    for event in registry.events():
        if event.kind == "sorted":
            here = event.numbers["traffic"] == name_of(batch)
        elif here and event.kind == "promoted":
            told = event.numbers
            parts.append({
                "arrival": told["arrival"],
                "action": told["action"],
                "expert": expert_of(told["expert"]),
                "version": told["version"],
            })  # fmt: skip
    actions = [one["action"] for one in parts] or [str(result.action) for result in results]
    return Arrived(
        batch,
        "mixed",
        None,
        None,
        "created" if "created" in actions else actions[-1],
        None,
        None,
        dict(truth),
        tokens,
        sum(result.seconds for result in results),
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
    """The true borders and those that the pool's verdicts name, in batches, with the window in
    which they match; None where the stream has none.

    A batch is a border where its verdict is *novel* or *covered*, or where it went to another
    expert than the one before it that went to any. A border within a batch may be seen only at the
    next one, of which all rows are the new skill's.
    """
    if not stream.truth.borders:
        return None
    detected, before = [], None
    for one in told:
        moved = one.expert is not None and before is not None and one.expert != before
        if before is not None and (moved or one.verdict in ("novel", "covered")):
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


def _axes(verdict: Verdict) -> tuple[float | None, ...]:
    return tuple(
        None if axis is None else float(axis.value) for axis in (verdict.separability, verdict.fit)
    )
