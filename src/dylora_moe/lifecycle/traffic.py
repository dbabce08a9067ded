"""Sorts unlabelled mixed rows: which are a known skill's, which are of a new kind, which wait.

Each row is screened alone, by its prompt. Then all rows are clustered, by prompt and answer, and
those of a cluster vote: a row goes where most rows like it go. Knows the live pool and rows; gives
no verdict, learns nothing and stores nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.foundation.base import Base
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.recipe import TrafficRules
from dylora_moe.records import Example
from dylora_moe.skills.clustering import clusters, voted
from dylora_moe.skills.screening import Screen, screen_of
from dylora_moe.text.template import Encoded, encode_all


@dataclass(frozen=True)
class Enough:
    """Rows of a known skill that are not left to wait.

    Attributes:
        apart: of rows that are alike, so many get a verdict of their own, which can still tell a
            new kind of rows from those of the skill that seemed the nearest.
        together: so many of a skill that has none of these, whatever their cluster; they can be
            more of that skill, and nothing else.
    """

    apart: int = 32
    together: int = 16


@dataclass(frozen=True)
class Sorted:
    """Every row once.

    Attributes:
        clusters: strange rows that are alike and enough, the largest cluster first.
        claimed: rows of known skills where they are enough (`Enough`): the skill's id and its rows.
        waiting: all others, in their order.
        strange: rows that the screen called strange, before the vote.
        overruled: rows that the vote sent elsewhere than the screen.
    """

    clusters: tuple[tuple[Example, ...], ...]
    claimed: tuple[tuple[str, tuple[Example, ...]], ...]
    waiting: tuple[Example, ...]
    strange: int
    overruled: int


@dataclass(frozen=True, eq=False)
class RowFeatures:
    """Tap features of rows: of what is asked, and of what is asked and answered."""

    prompts: Float[Tensor, "n d"]
    whole: Float[Tensor, "n d"]


def sort_traffic(
    live: LivePool,
    rows: Sequence[Example],
    rules: TrafficRules | None = None,
    *,
    enough: Enough | None = None,
    max_length: int | None = None,
) -> Sorted:
    """Sorts rows by the skills that the pool has now; in an empty pool all of them are strange.

    Args:
        live: the pool.
        rows: distinct, at most `skills.clustering.MOST_ROWS`.
        rules: how.
        enough: rows of a known skill that do not wait.
        max_length: tokens of a row; the model's context where None.

    Raises:
        ConfigError: more rows than are clustered at a time.
        DataError: a row is longer than the limit.
    """
    rules = rules or TrafficRules()
    seen = row_features(live, rows, max_length)
    screen = screen_of(
        live.library, live.own_statistics, share=rules.share, shared=live.router.table.shared
    )
    return sorted_by(screen, live.own_statistics, rows, seen, rules, enough)


def sorted_by(
    screen: Screen,
    foreign: FeatureStatistics,
    rows: Sequence[Example],
    seen: RowFeatures,
    rules: TrafficRules,
    enough: Enough | None = None,
) -> Sorted:
    """Sorts rows whose features are there; arguments and errors are those of `sort_traffic`.

    Args:
        screen: of the known skills.
        foreign: statistics of the base's own prompts.
        seen: features of the rows, in their order.
    """
    alone = screen(seen.prompts)
    groups = clusters(seen.whole, foreign, alike=rules.alike)
    found = voted(alone, groups)
    kinds: dict[int, list[Example]] = {}
    owned: dict[tuple[str, int], list[Example]] = {}
    placed = zip(rows, groups.tolist(), found.strange.tolist(), found.nearest.tolist(), strict=True)
    for row, group, strange, nearest in placed:
        if strange:
            kinds.setdefault(group, []).append(row)
        else:
            owned.setdefault((screen.skill_ids[nearest], group), []).append(row)
    large = [tuple(kind) for kind in kinds.values() if len(kind) >= rules.least]
    claimed = _claims(owned, enough or Enough())
    taken = {row.key for part in (*large, *(rows for _, rows in claimed)) for row in part}
    moved = (found.strange != alone.strange) | (
        ~found.strange & ~alone.strange & (found.nearest != alone.nearest)
    )
    return Sorted(
        clusters=tuple(sorted(large, key=len, reverse=True)),
        claimed=tuple(claimed),
        waiting=tuple(row for row in rows if row.key not in taken),
        strange=int(alone.strange.sum()),
        overruled=int(moved.sum()),
    )


def _claims(
    owned: Mapping[tuple[str, int], Sequence[Example]], enough: Enough
) -> list[tuple[str, tuple[Example, ...]]]:
    """Of rows by skill and cluster those that are enough: clusters, or a skill's small ones."""
    found, rest = [], dict[str, list[Example]]()
    for (skill, _), rows in owned.items():
        if len(rows) >= enough.apart:
            found.append((skill, tuple(rows)))
        else:
            rest.setdefault(skill, []).extend(rows)
    # What a skill has besides a cluster waits: two trainings of it for one batch are one too many.
    learned = {skill for skill, _ in found}
    return found + [
        (skill, tuple(rows))
        for skill, rows in rest.items()
        if len(rows) >= (enough.apart if skill in learned else enough.together)
    ]


def row_features(
    live: LivePool, rows: Sequence[Example], max_length: int | None = None
) -> RowFeatures:
    """Tap features of rows' prompts, as the router sees them, and of whole rows; the trunk runs for
    each.

    Raises:
        DataError: a row is longer than the limit.
    """
    if not rows:
        nothing = torch.zeros(0, live.base.anatomy.d_features)
        return RowFeatures(nothing, nothing)
    limit = live.limit(max_length)
    encoded, _ = encode_all(rows, live.base.tokenizer, live.fmt, limit)
    return features_of(live.base, encoded, live.scratch)


def features_of(base: Base, rows: Sequence[Encoded], scratch: Path | None = None) -> RowFeatures:
    """`row_features` of encoded rows; `scratch` as of `TrunkCache`."""
    whole = [replace(row, prompt_length=len(row)) for row in rows]
    return RowFeatures(*(TrunkCache(base, part, folder=scratch).features for part in (rows, whole)))
