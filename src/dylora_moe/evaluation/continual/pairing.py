"""Rows of results put side by side: by skill, by arm, with intervals over rows.

Knows results alone. Accuracies are macro averages over skills, then over seeds. Every interval is
over the rows of each skill, the same under every seed that answered them, and over the seeds where
there are several (`scoring.bootstrap.macro_bootstrap`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dylora_moe.evaluation.continual.results import ArmResult, RowResult, Stage
from dylora_moe.records import Interval
from dylora_moe.scoring.bootstrap import Paired, macro_bootstrap

Number = Callable[[RowResult], float]
"""What is taken of a row."""

ArmResults = Sequence[ArmResult]
"""Of one arm on one stream, one a seed."""


def average(results: ArmResults, number: Number) -> Interval:
    """The macro average after the stream, with its interval."""
    pairs = [pair for one in results for pair in grouped(one.last.rows, number, one.seed)]
    return interval(pairs, "difference")


def compared(
    first: ArmResults,
    second: ArmResults,
    statistic: str = "ratio",
    number: Number = lambda row: row.score,
) -> Interval:
    """Two arms' macro averages after their streams, divided or subtracted, paired over rows
    and seeds.

    Args:
        first, second: of the same seeds; others are left out.
        statistic: `ratio` or `difference`.
        number: what is averaged.

    Raises:
        ValueError: no seed is in both, the rows of a seed are not the same ones, or a ratio to a
            mean of zero.
    """
    other = {one.seed: one for one in second}
    pairs: list[Paired] = []
    for one in first:
        if one.seed in other:
            pairs += paired(one.last.rows, other[one.seed].last.rows, number, one.seed)
    if not pairs:
        raise ValueError(f"{first[0].arm} and {second[0].arm} have no seed in common")
    return interval(pairs, statistic)


def neutral_ratio(first: ArmResults, second: ArmResults) -> Interval:
    """Two arms' token-mean losses on text of no skill, divided, paired over its rows and seeds;
    without an interval where one has no losses row by row.

    Raises:
        ValueError: it was not measured, no seed is in both, or their rows are not the same ones.
    """
    other = {one.seed: one for one in second}
    both = [(one, other[one.seed]) for one in first if one.seed in other]
    if not both or any(not one.base_loss or not two.base_loss for one, two in both):
        raise ValueError("no loss on text of no skill was measured under a seed of both")
    if any(not one.neutral or not two.neutral for one, two in both):
        left, right = (
            mean([one.base_loss or 0.0 for one in side]) for side in zip(*both, strict=True)
        )
        return Interval(left / right, left / right, left / right)
    pairs = []
    for one, two in both:
        rows = {row.key: row for row in two.neutral}
        if {row.key for row in one.neutral} != set(rows):
            raise ValueError("the loss on text of no skill is of other rows on either side")
        pairs.append(
            Paired(
                [row.loss / row.tokens for row in one.neutral],
                [rows[row.key].loss / row.tokens for row in one.neutral],
                [row.tokens for row in one.neutral],
                seed=one.seed,
                skill="none",
                rows=[row.key for row in one.neutral],
            )
        )
    return interval(pairs, "ratio")


def mean(values: Sequence[float]) -> float:
    """Of at least one number."""
    return sum(values) / len(values)


def by_skill(stage: Stage) -> dict[str, list[RowResult]]:
    found: dict[str, list[RowResult]] = {}
    for row in stage.rows:
        found.setdefault(row.skill, []).append(row)
    return found


def grouped(rows: Iterable[RowResult], number: Number, seed: int) -> list[Paired]:
    """Each skill's numbers against zeros: the interval of one system's macro average."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row.skill, {})[row.key] = number(row)
    return [
        Paired([*own.values()], [0.0] * len(own), seed=seed, skill=skill, rows=[*own])
        for skill, own in found.items()
    ]


def paired(
    first: Sequence[RowResult], second: Sequence[RowResult], number: Number, seed: int
) -> list[Paired]:
    """The numbers of the rows of `first` with those of the same rows in `second`, by skill."""
    other = {(row.skill, row.key): number(row) for row in second}
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for row in first:
        if (row.skill, row.key) not in other:
            raise ValueError(f"a row of {row.skill} was answered by one side only")
        found.setdefault(row.skill, {})[row.key] = number(row), other[row.skill, row.key]
    return [
        Paired(
            [one for one, _ in own.values()],
            [two for _, two in own.values()],
            seed=seed,
            skill=skill,
            rows=[*own],
        )
        for skill, own in found.items()
    ]


def interval(pairs: Sequence[Paired], statistic: str) -> Interval:
    return macro_bootstrap(pairs, statistic="ratio" if statistic == "ratio" else "difference")
