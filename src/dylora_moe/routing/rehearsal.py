"""Stored features turned into rows to learn from, with the logits they would get as strangers.

Knows the row table and feature vectors; knows nothing learned. The closed form has seen these
rows; what is measured on them is honest only if each is judged by a gate that has not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dylora_moe.errors import RoutingError
from dylora_moe.foundation.statistics import double
from dylora_moe.routing.rows import RowTable

MOST_ROWS = 2560
"""Stored rows that are rehearsed at most, as many of each class. Beyond, a gate of a thousand
skills would take minutes to calibrate, and two numbers and a yes or no need no more."""


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """Rows with their right answers.

    Attributes:
        features: float32 on the CPU.
        labels: row of the gate: 0 for *no expert*, then the skills.
        closed: the closed form's logits for each row from a gate fitted without that row.
        held_out: True for rows that were in no part of the gate their logits come from; their
            skill's other rows were.
        classes: how many classes have stored rows.
    """

    features: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    closed: Float[Tensor, "n n_rows"]
    held_out: Bool[Tensor, " n"]
    classes: int


def rehearse(
    table: RowTable,
    features_by_skill: Mapping[str, Float[Tensor, "_ d"]],
    none_features: Float[Tensor, "_ d"] | None,
    *,
    holdout: float = 0.0,
    seed: int = 0,
    most: int = MOST_ROWS,
    only_held_out: bool = False,
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
        most: where more rows are stored, an even sample of them is taken (`even_sample`).
        only_held_out: leaves out the other rows, where nothing trains on them.

    Raises:
        RoutingError: a skill of the table has no rows here, or the other way round.
    """
    _check(table, features_by_skill, none_features)
    stored = [features_by_skill[row.skill_id] for row in table.rows]
    if none_features is not None:
        stored.insert(0, none_features)
    first = 0 if none_features is not None else 1
    chosen = even_sample([len(part) for part in stored], most)
    out_of = _held_out(
        [len(rows) for rows in chosen], [len(part) for part in stored], holdout, seed, most
    )
    if only_held_out:
        chosen = [rows[out] for rows, out in zip(chosen, out_of, strict=True)]
        out_of = [out[out] for out in out_of]
    held_out = torch.cat(out_of)
    features = torch.cat([double(p[rows]) for p, rows in zip(stored, chosen, strict=True)])
    sizes = torch.tensor([len(rows) for rows in chosen])
    labels = torch.repeat_interleave(torch.arange(len(stored)) + first, sizes)
    kept = table.without(features[held_out], labels[held_out]) if held_out.any() else table
    closed = torch.zeros(len(features), len(table.rows) + 1)
    whitened, inside = kept.whitened().single(), ~held_out
    if inside.any():
        closed[inside, first:] = whitened.leave_one_out(
            features[inside], labels[inside] - first, [one.count for one in kept.fitted]
        )
    if held_out.any():
        closed[held_out, first:] = whitened.logits(features[held_out]).float()
    classes = sum(len(part) > 0 for part in stored)
    return Rehearsal(features.float(), labels, closed, held_out, classes)


def even_sample(sizes: Sequence[int], most: int = MOST_ROWS) -> list[Int[Tensor, " _"]]:
    """Which rows of parts of these sizes are taken: all where they are `most` together or fewer,
    else as many of each part as go into `most` (one at least), drawn by the part's number."""
    limit = max(sizes, default=0)
    if sum(sizes) > most:
        # What n parts of the smallest sizes leave for each of the others, where that is no more
        # than they have: the first such n.
        left, limit = most, 1
        for taken, size in enumerate(sorted(sizes)):
            limit = max(1, left // (len(sizes) - taken))
            if size > limit:
                break
            left -= size
    return [
        torch.arange(size)
        if size <= limit
        else torch.randperm(size, generator=torch.Generator().manual_seed(part))[:limit]
        .sort()
        .values
        for part, size in enumerate(sizes)
    ]


def _held_out(
    sizes: Sequence[int], stored: Sequence[int], share: float, seed: int, most: int
) -> list[Bool[Tensor, " _"]]:
    """A seeded choice of `share` of each class's rows; none of a class with fewer than five stored.

    Of more classes than `share` of `most` has rows for, a seeded choice of classes is spared: what
    is judged on these rows is sure of its answer with some hundreds.
    """
    room = max(1, int(share * most))
    chosen = [torch.zeros(n, dtype=torch.bool) for n in sizes]
    if share <= 0:
        return chosen
    takes = [
        max(1, int(n * share)) if all_ >= 5 else 0 for n, all_ in zip(sizes, stored, strict=True)
    ]
    order: Sequence[int] = range(len(sizes))
    if sum(takes) > room:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(sizes), generator=generator).tolist()
    for part in order:
        if takes[part] and (room := room - takes[part]) >= 0:
            generator = torch.Generator().manual_seed(seed + part)
            chosen[part][torch.randperm(sizes[part], generator=generator)[: takes[part]]] = True
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
