"""Stored features turned into rows to learn from, with the logits they would get as strangers.

Knows the row table and feature vectors; knows nothing learned. The closed form has seen these
rows; what is measured on them is honest only if each is judged by a gate that has not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dylora_moe.errors import RoutingError
from dylora_moe.foundation.statistics import FeatureStatistics, double
from dylora_moe.routing.closed_form import lda_rows, leave_one_out
from dylora_moe.routing.rows import RowTable


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """Rows with their right answers.

    Attributes:
        features: float32 on the CPU.
        labels: row of the gate: 0 for *no expert*, then the skills.
        closed: the closed form's logits for each row from a gate fitted without that row.
        held_out: True for rows that were in no part of the gate their logits come from; their
            skill's other rows were.
    """

    features: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    closed: Float[Tensor, "n n_rows"]
    held_out: Bool[Tensor, " n"]


def rehearse(
    table: RowTable,
    features_by_skill: Mapping[str, Float[Tensor, "_ d"]],
    none_features: Float[Tensor, "_ d"] | None,
    *,
    holdout: float = 0.0,
    seed: int = 0,
) -> Rehearsal:
    """Puts the stored rows together.

    Args:
        table: the gate's rows; the statistics behind it hold the rows handed in.
        features_by_skill: stored rows of every skill.
        none_features: the base's own prompts, where the table has a row for them.
        holdout: share of each class's rows that is taken out of the closed form altogether, for
            early stopping. Leaving each row out on its own is not enough there: a correction
            trained on the other rows' logits would learn the row's label from them.
        seed: of the choice.

    Raises:
        RoutingError: a skill of the table has no rows here, or the other way round.
    """
    _check(table, features_by_skill, none_features)
    parts = [features_by_skill[row.skill_id] for row in table.rows]
    if none_features is not None:
        parts.insert(0, none_features)
    first = 0 if none_features is not None else 1
    features = torch.cat([double(part) for part in parts])
    labels = torch.cat([torch.full((len(p),), i + first) for i, p in enumerate(parts)])
    held_out = torch.cat([_choose(len(p), holdout, seed + i) for i, p in enumerate(parts)])
    kept = table.without(
        {
            int(label): FeatureStatistics.from_features(features[held_out & (labels == label)])
            for label in labels[held_out].unique()
        }
    )
    closed = torch.zeros(len(features), len(table.rows) + 1, dtype=torch.float64)
    means = torch.stack([one.mean for one in kept.fitted])
    counts = [one.count for one in kept.fitted]
    closed[~held_out, first:] = leave_one_out(
        features[~held_out], labels[~held_out] - first, means, counts, kept.shared, kept.shrinkage
    )
    if held_out.any():
        rows = lda_rows(means, kept.shared, kept.shrinkage)
        closed[held_out, first:] = rows.logits(features[held_out])
    return Rehearsal(features.float(), labels, closed.float(), held_out)


def _choose(n: int, share: float, seed: int) -> Bool[Tensor, " n"]:
    """A seeded choice of `share` of n rows; none of fewer than five."""
    chosen = torch.zeros(n, dtype=torch.bool)
    if n >= 5 and share > 0:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        chosen[order[: max(1, int(n * share))]] = True
    return chosen


def _check(table: RowTable, skills: Mapping[str, Tensor], none: Tensor | None) -> None:
    wanted = {row.skill_id for row in table.rows}
    if wanted != set(skills) or not wanted:
        raise RoutingError(
            f"rehearsal needs stored features of the router's skills ({sorted(wanted)}) and got "
            f"those of {sorted(skills)}; hand in the library's rows of each"
        )
    if table.has_none != (none is not None):
        raise RoutingError(
            "rehearsal needs the base's own prompts exactly if the row of no expert is fitted on "
            "them; call set_none first, or hand in their features"
        )
