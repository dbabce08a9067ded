"""Do probabilities mean what they say: calibration error and Brier score of a classification.

Knows probabilities and which class was right, nothing of routers: the columns may be experts with
one for none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SUM = 1e-3
"""How far a row may be from one in sum: probabilities that were kept in 16 bits."""


def expected_calibration_error(
    probabilities: ArrayLike, truths: Sequence[int], *, bins: int = 15
) -> float:
    """ECE = sum_b |B_b| / n * |accuracy(B_b) - confidence(B_b)| over bins of rows by confidence.

    A row's confidence is its largest probability; it is right if that is its true class's (of
    equal ones the first column counts). Naeini et al. 2015, "Obtaining Well Calibrated
    Probabilities Using Bayesian Binning"; with bins of equal mass, not of equal width, as in Nguyen
    and O'Connor 2015, "Posterior calibration and exploratory analysis for natural language
    processing models": where most rows are sure, bins of equal width leave all but one nearly
    empty. Rows of equal confidence share a bin, the one in which they begin, so that the order of
    the rows makes no difference; where many rows tie, bins differ in mass and there are fewer.

    Args:
        probabilities: `[rows, classes]`, each row summing to one.
        truths: the right column of each row.
        bins: how many; at most as many as there are rows are filled.

    Returns:
        0 (the share of right rows is the confidence in every bin) to 1.

    Raises:
        ValueError: no rows, no bins, rows that are no probabilities, a truth that is no column.
    """
    table, right = _checked(probabilities, truths)
    return calibration_error(table.max(axis=1), table.argmax(axis=1) == right, bins=bins)


def calibration_error(confidences: ArrayLike, hits: ArrayLike, *, bins: int = 15) -> float:
    """`expected_calibration_error` where of each row only its largest probability is known.

    Args:
        confidences: of each row, the largest probability.
        hits: of each row, whether it is right.
        bins: how many; at most as many as there are rows are filled.

    Raises:
        ValueError: no rows, no bins, a confidence that is no probability, or vectors of two sizes.
    """
    if bins < 1:
        raise ValueError(f"{bins} bins; use at least 1")
    confidence = np.asarray(confidences, dtype=np.float64)
    hit = np.asarray(hits, dtype=np.float64)
    if confidence.ndim != 1 or confidence.size == 0 or hit.shape != confidence.shape:
        raise ValueError(
            f"confidences are [rows] with a hit a row, found {confidence.shape} and {hit.shape}"
        )
    # Written so that NaN is refused too.
    if not np.all((confidence >= 0) & (confidence <= 1 + _SUM)):
        raise ValueError("every confidence must be a number of 0 to 1")
    _, run, sizes = np.unique(confidence, return_inverse=True, return_counts=True)
    begins = np.cumsum(sizes) - sizes
    place = (begins * bins // len(hit))[run.reshape(-1)]
    gaps = np.bincount(place, weights=hit - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(hit))


def brier_score(probabilities: ArrayLike, truths: Sequence[int]) -> float:
    """BS = 1/n sum_i sum_k (p[i, k] - [k is right for i])^2 (Brier 1950, Verification of forecasts
    expressed in terms of probability).

    Args:
        probabilities: `[rows, classes]`, each row summing to one.
        truths: the right column of each row.

    Returns:
        0 (sure and right) to 2 (sure and wrong); guessing evenly among K classes gives 1 - 1/K.

    Raises:
        ValueError: as `expected_calibration_error`.
    """
    table, right = _checked(probabilities, truths)
    wanted = np.zeros_like(table)
    wanted[np.arange(len(table)), right] = 1
    return float(((table - wanted) ** 2).sum(axis=1).mean())


def _checked(
    probabilities: ArrayLike, truths: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    table = np.asarray(probabilities, dtype=np.float64)
    right = np.asarray(truths, dtype=np.int64)
    if table.ndim != 2 or table.size == 0 or right.shape != table.shape[:1]:
        raise ValueError(
            f"probabilities are [rows, classes] with a truth a row, found {table.shape} and "
            f"{right.shape}"
        )
    # Written so that NaN is refused too.
    sums = np.abs(table.sum(axis=1) - 1) <= _SUM
    if not (np.all(sums) and np.all(table >= 0)):
        raise ValueError("every row of probabilities must be positive numbers that sum to one")
    if right.min() < 0 or right.max() >= table.shape[1]:
        raise ValueError(f"a truth is no column of {table.shape[1]}")
    return table, right
