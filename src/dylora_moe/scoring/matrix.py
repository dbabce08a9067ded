"""What a continual learner kept: metrics of an accuracy matrix.

Row i holds the scores after arrival i, column j those of skill j; None where a score was not
measured. `learned_at[j]` is the row at which skill j was learned, by default j (the square matrix
of the papers); a stream in which skills return has more rows than columns and names them.
Indices in the formulas count from 1, as in the papers. Knows nothing of how scores are made.
"""

from __future__ import annotations

from collections.abc import Sequence

Matrix = Sequence[Sequence[float | None]]


def average_accuracy(matrix: Matrix) -> float | None:
    """ACC = 1/T sum_j R[T, j]: the mean over skills after the last arrival
    (Lopez-Paz and Ranzato 2017, Gradient Episodic Memory, equation 2). None if nothing is there."""
    return _mean(list(matrix[-1])) if matrix else None


def backward_transfer(matrix: Matrix, learned_at: Sequence[int] | None = None) -> float | None:
    """BWT = 1/(T-1) sum_{j<T} (R[T, j] - R[j, j]): what later arrivals did to earlier skills,
    negative where they were forgotten (Lopez-Paz and Ranzato 2017, equation 3).

    Returns:
        The mean over skills learned before the last arrival; None where there is none.
    """
    rows = _learned_rows(matrix, learned_at)
    last = len(matrix) - 1
    return _mean(
        [_difference(matrix[last][j], matrix[row][j]) for j, row in enumerate(rows) if row < last]
    )


def forward_transfer(
    matrix: Matrix, baseline: Sequence[float | None], learned_at: Sequence[int] | None = None
) -> float | None:
    """FWT = 1/(T-1) sum_{j>1} (R[j-1, j] - b[j]): what earlier arrivals did for a skill before it
    was learned, against a model that learned nothing (Lopez-Paz and Ranzato 2017, equation 4).

    Args:
        matrix: the accuracy matrix.
        baseline: b, the score of each skill before the first arrival.
        learned_at: see the module.
    """
    rows = _learned_rows(matrix, learned_at)
    if len(baseline) != len(rows):
        raise ValueError(f"{len(baseline)} baseline scores for {len(rows)} skills")
    return _mean(
        [
            _difference(matrix[row - 1][j], baseline[j])
            for j, row in enumerate(rows)
            if 0 < row <= len(matrix)
        ]
    )


def forgetting_per_skill(
    matrix: Matrix, learned_at: Sequence[int] | None = None
) -> list[float | None]:
    """f[j] = max_{l<T} R[l, j] - R[T, j]: the best score a skill ever had against its last one
    (Chaudhry et al. 2018, Riemannian Walk, equation 3). None for a skill learned at the last
    arrival, which had no time to be forgotten, and where it was not measured."""
    rows = _learned_rows(matrix, learned_at)
    last = len(matrix) - 1
    found: list[float | None] = []
    for j, row in enumerate(rows):
        earlier = [line[j] for line in matrix[:last] if line[j] is not None]
        best = max((value for value in earlier if value is not None), default=None)
        found.append(_difference(best, matrix[last][j]) if row < last else None)
    return found


def forgetting(matrix: Matrix, learned_at: Sequence[int] | None = None) -> float | None:
    """F = 1/(T-1) sum_{j<T} f[j] (Chaudhry et al. 2018, section 3.2); see `forgetting_per_skill`.
    0 if nothing was lost, negative where skills only gained."""
    return _mean(forgetting_per_skill(matrix, learned_at))


def _learned_rows(matrix: Matrix, learned_at: Sequence[int] | None) -> list[int]:
    skills = len(matrix[0]) if matrix else 0
    if any(len(line) != skills for line in matrix):
        raise ValueError("every row of an accuracy matrix needs a column for each skill")
    rows = list(range(skills)) if learned_at is None else list(learned_at)
    if len(rows) != skills:
        raise ValueError(f"{len(rows)} rows of learning for {skills} skills")
    if any(row < 0 for row in rows):
        raise ValueError("rows of learning count from 0")
    return rows


def _difference(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
