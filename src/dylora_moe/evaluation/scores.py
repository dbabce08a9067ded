"""The scores artifact of a revision: how the pool did on every skill's validation rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from dylora_moe.build.json_values import as_float, as_floats, as_int, as_mapping, as_text
from dylora_moe.errors import ArtifactError
from dylora_moe.ports import ArtifactStore
from dylora_moe.records import Artifact


@dataclass(frozen=True, slots=True)
class SkillRow:
    """One skill's scores after one step.

    Attributes:
        loss: token-mean answer loss in nats under the router's own choice.
        pinned_loss: the same with the skill's own expert pinned at weight one.
        accuracy: mean score of generated answers, 0 to 1; None where nothing was generated.
        generated: rows whose answers were generated, which `accuracy` is the mean of.
        to: share of the weight by expert id, and `base` for no expert.
    """

    skill_id: str
    name: str
    loss: float | None
    accuracy: float | None
    rows: int | None
    generated: int | None
    pinned_loss: float | None
    to: Mapping[str, float]


def read_scores(artifacts: ArtifactStore, artifact: Artifact) -> tuple[SkillRow, ...]:
    """The rows of a scores artifact, in its order.

    Raises:
        ArtifactError: the file is missing, does not match its hash, or is not what it should be.
    """
    body = artifacts.open(artifact).read_text(encoding="utf-8")
    try:
        skills = as_mapping(as_mapping(json.loads(body)).get("skills"))
    except ValueError:
        raise ArtifactError(
            f"{artifact.path}: not valid JSON; roll the pool back to the revision before it"
        ) from None
    return tuple(_row(skill_id, as_mapping(values)) for skill_id, values in skills.items())


def _row(skill_id: str, values: Mapping[str, object]) -> SkillRow:
    return SkillRow(
        skill_id=skill_id,
        name=as_text(values.get("name")) or skill_id,
        loss=as_float(values.get("loss")),
        accuracy=as_float(values.get("accuracy")),
        rows=as_int(values.get("rows")),
        generated=_generated(values),
        pinned_loss=as_float(values.get("pinned_loss")),
        to=as_floats(values.get("to")),
    )


def _generated(values: Mapping[str, object]) -> int | None:
    """Counted from the rows where they are stored (key, weights, loss, tokens, score)."""
    rows = values.get("scores")
    if not isinstance(rows, list):
        return as_int(values.get("rows"))
    return sum(isinstance(row, list) and len(row) > 4 and row[4] is not None for row in rows)
