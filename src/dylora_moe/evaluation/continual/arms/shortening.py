"""What the pool said of a stream, and what it would have said had the stream ended sooner.

Knows results and the truth of streams; learns nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dylora_moe.evaluation.continual.arms.journal import (
    Arrived,
    borders,
    new_for_returning,
    true_skills,
)
from dylora_moe.evaluation.continual.results import ArmResult, TextLoss
from dylora_moe.evaluation.continual.streams import Stream


def growth(stream: Stream, told: Sequence[Arrived], owners: Mapping[str, str]) -> dict[str, Any]:
    """What the verdicts say of a stream: experts made over it, for skills that returned, and
    borders; `owners` are the experts' true skills by id."""
    made = 0
    grown = []
    for one in told:
        made += len(one.made)
        grown.append(made)
    return {
        "grown_after_batch": grown,
        "waiting": told[-1].waiting if told else 0,
        "new_for_returning": new_for_returning(stream, told, owners),
        "borders": borders(stream, told),
    }


def shortened(result: ArmResult, stream: Stream, name: str) -> ArmResult | None:
    """What ours would have handed back had the stream ended sooner; None where it did not go
    through the very same batches first, or was not answered there.

    Args:
        result: on a longer stream.
        stream: the shorter one.
        name: its name.
    """
    count, visits = len(stream.batches), len(stream.truth.visits)
    told = [Arrived(**one) for one in result.details["arrivals"]][:count]
    stages = tuple(stage for stage in result.stages if stage.after <= visits)
    same = [dict(skills) for skills in true_skills(stream)] == [one.skills for one in told]
    facts = result.details.get("after", {}).get(str(visits))
    if not same or not stages or stages[-1].after != visits or result.last is stages[-1]:
        return None
    if facts is None:
        return None
    share = sum(one.seconds for one in told) / max(
        1e-9, sum(one["seconds"] for one in result.details["arrivals"])
    )
    return replace(
        result,
        stream=name,
        stages=stages,
        trained_tokens=sum(one.tokens for one in told),
        seconds=result.seconds * share,
        parameters=facts["parameters"],
        parameters_in_use=facts["parameters_in_use"],
        base_loss=facts["base_loss"],
        neutral=neutral_of(facts),
        details={
            **growth(stream, told, facts["owners"]),
            **facts["details"],
            "arrivals": [one.to_json() for one in told],
            "after": {str(visits): facts},
            "read_off": result.stream,
        },
    )


def neutral_of(facts: Mapping[str, Any]) -> tuple[TextLoss, ...]:
    """The losses on text of no skill that were noted at a stage."""
    return tuple(TextLoss(**row) for row in facts.get("neutral", ()))
