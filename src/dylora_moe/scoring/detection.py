"""How well a score tells what is to be found from what is not: AUROC with its interval.

The area under the ROC curve is the probability that a positive scores above a negative, a tie
counting half: the Mann-Whitney statistic over the number of pairs (Hanley and McNeil 1982; Fawcett
2006, An introduction to ROC analysis, section 7). Knows numbers only; what a positive is, and that
it is the higher score that means one, is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dylora_moe.records import Interval

_CELLS = 1 << 20
"""Resampled counts held in memory at once."""


def auroc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """1 where every positive scores above every negative, 0.5 where the scores say nothing.

    Args:
        positives: scores of what is to be found.
        negatives: scores of all else; infinities are in order, NaN is not.

    Raises:
        ValueError: a side is empty, or a score is NaN.
    """
    counts = _counts(positives, negatives)
    return float(_area(counts[0][None], counts[1][None])[0])


def auroc_interval(
    positives: Sequence[float],
    negatives: Sequence[float],
    *,
    rounds: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The AUROC with its percentile bootstrap interval over rows.

    Stratified: positives and negatives are resampled each among themselves, so that no resample
    lacks a side (Efron and Tibshirani 1993, section 8.3, two samples). The resamples of a detector
    without a mistake have none either: its interval is 1 to 1, however few the rows.

    Args:
        positives, negatives: as `auroc`.
        rounds: resamples.
        confidence: share of the resamples inside the interval.
        seed: the same seed gives the same interval, in any order of the rows.

    Raises:
        ValueError: as `auroc`; no rounds, or a confidence that is not between 0 and 1.
    """
    if rounds < 1 or not 0 < confidence < 1:
        raise ValueError("rounds must be positive and confidence between 0 and 1")
    found, other = _counts(positives, negatives)
    rng = np.random.default_rng(seed)
    chunk = max(1, _CELLS // len(found))
    parts = []
    for start in range(0, rounds, chunk):
        size = min(chunk, rounds - start)
        parts.append(_area(_resampled(found, size, rng), _resampled(other, size, rng)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(parts), [tail, 1 - tail])
    value = float(_area(found[None], other[None])[0])
    return Interval(value, float(low), float(high))


def _counts(
    positives: Sequence[float], negatives: Sequence[float]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many positives and how many negatives have each distinct score, the lowest first.

    All that the area depends on, ties included; of a resample too.
    """
    above, below = (np.asarray(side, dtype=np.float64) for side in (positives, negatives))
    if min(len(above), len(below)) == 0:
        raise ValueError(f"an AUROC needs both: {len(above)} positives, {len(below)} negatives")
    scores = np.concatenate([above, below])
    if np.isnan(scores).any():
        raise ValueError("a score is not a number; leave out rows that have none")
    distinct, ranks = np.unique(scores, return_inverse=True)
    found, other = np.split(ranks.reshape(-1), [len(above)])
    return (
        np.bincount(found, minlength=len(distinct)).astype(np.int64),
        np.bincount(other, minlength=len(distinct)).astype(np.int64),
    )


def _resampled(
    counts: NDArray[np.int64], rounds: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """`[rounds, scores]`: counts of resamples of the rows with replacement."""
    rows = int(counts.sum())
    return np.asarray(rng.multinomial(rows, counts / rows, size=rounds), dtype=np.int64)


def _area(found: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
    """`[rounds]`: share of the pairs in which the positive is above, of counts
    `[rounds, scores]`."""
    # Twice the pairs won, so that a tie, which counts half, is a whole number.
    won = (found * (2 * np.cumsum(other, axis=1) - other)).sum(axis=1)
    pairs = found.sum(axis=1) * other.sum(axis=1)
    return np.asarray(won / (2 * pairs), dtype=np.float64)
