"""Weighs two versions of an expert against each other, a few rows at a time.

Knows the live pool and adapters in it; knows nothing of traffic and decides nothing.
"""

from __future__ import annotations

from collections.abc import Generator

from dylora_moe.lifecycle.gate import rise
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.records import Interval
from dylora_moe.scoring.bootstrap import Paired
from dylora_moe.training.measure import answer_losses

_SLICE = 8
"""Rows that are measured at a time: between two, somebody else may use the model."""


def weigh_versions(
    live: LivePool, expert_id: str, old: str, new: str, *, slice_rows: int = _SLICE
) -> Generator[None, None, Interval | None]:
    """The relative rise of the loss from one version to the other, each alone in its rows.

    Args:
        live: the pool; its skills' validation rows are measured.
        expert_id: whose skills they are.
        old, new: the adapters that hold the versions.
        slice_rows: rows between two yields, which are read, and then measured.

    Returns:
        With its 95% interval over the rows (paired bootstrap); None where the skills have none.

    Raises:
        ArtifactError: an adapter's file is damaged.
    """
    first: list[float] = []
    second: list[float] = []
    weights: list[int] = []
    for skill in [one for one in live.skills.values() if one.expert_id == expert_id]:
        examples = skill.validation
        for start in range(0, len(examples), slice_rows):
            # Not the skill's own encoded rows: those come of one pass over all of them.
            rows = live.encode(examples[start : start + slice_rows])
            yield
            after = answer_losses(live.model, rows, expert=new)
            before = answer_losses(live.model, rows, expert=old)
            first += after.per_row.tolist()
            second += before.per_row.tolist()
            weights += after.tokens.tolist()
            yield
    return rise(Paired(first, second, weights)) if weights else None
