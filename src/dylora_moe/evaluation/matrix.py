"""The accuracy matrix and the loss matrix of a history, and what they say of forgetting.

Row i is the pool after step i, column j is skill j in order of appearance; None where a skill was
not scored. The metrics are those of `dylora_moe.scoring.matrix`. A skill whose answers were revised
is learned anew there: what it scored before was against answers that no longer hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from dylora_moe.evaluation.history import History
from dylora_moe.evaluation.steps import Step
from dylora_moe.scoring.matrix import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forgetting_per_skill,
)

Values = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True)
class Matrices:
    """The matrices of a pool and their metrics.

    Attributes:
        accuracy: shares from 0 to 1.
        loss: token-mean answer losses in nats.
        learned_at: for each skill the row in which it was first scored, or its answers were last
            revised (or that taken back); every change is measured from there on.
        average_accuracy: mean over the skills after the last step.
        backward_transfer: mean change of a skill's accuracy since it was learned.
        forgetting: mean fall of a skill's accuracy from the best it ever had.
        average_loss: mean over the skills after the last step, in nats.
        accuracy_changes: for each older skill its last accuracy less its best earlier one; None
            for a skill of the last step, one that was removed, or where nothing was generated.
        loss_changes: the same of the loss, relative: (last - lowest earlier) / lowest earlier.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    accuracy: Values
    loss: Values
    learned_at: tuple[int, ...]
    average_accuracy: float | None
    backward_transfer: float | None
    forgetting: float | None
    average_loss: float | None
    accuracy_changes: tuple[float | None, ...]
    loss_changes: tuple[float | None, ...]


def build_matrices(history: History) -> Matrices:
    """The matrices of a history; empty ones for a pool to which nothing happened yet."""
    accuracy = tuple(
        tuple(None if cell is None else cell.accuracy for cell in row) for row in history.scores
    )
    loss = tuple(
        tuple(None if cell is None else cell.loss for cell in row) for row in history.scores
    )
    learned_at = tuple(_learned_at(history, j) for j in range(len(history.skills)))
    since = _since(accuracy, learned_at)
    return Matrices(
        rows=tuple(step.name for step in history.steps),
        columns=tuple(skill.name for skill in history.skills),
        accuracy=accuracy,
        loss=loss,
        learned_at=learned_at,
        average_accuracy=average_accuracy(accuracy),
        backward_transfer=backward_transfer(since, learned_at),
        forgetting=forgetting(since, learned_at),
        average_loss=average_accuracy(loss),
        accuracy_changes=tuple(
            None if fall is None else 0.0 - fall for fall in forgetting_per_skill(since, learned_at)
        ),
        loss_changes=_relative_rises(_since(loss, learned_at), learned_at),
    )


def _learned_at(history: History, column: int) -> int:
    """The row from which on the scores of a skill compare with its last one."""
    found: int | None = None
    revised: Step | None = None
    for i, step in enumerate(history.steps):
        scored = history.scores[i][column]
        if scored is None:
            continue
        # The name that it had then: a skill may be renamed later.
        own = step.skill in (scored.name, scored.skill_id)
        if own and (step.verdict, step.action) == ("revised", "new version"):
            found, revised = i, step
        elif found is None:
            found = i
        elif revised is not None and _takes_back(step, revised):
            found, revised = i, None
    assert found is not None, "a column is a skill that was scored"
    return found


def _takes_back(step: Step, revised: Step) -> bool:
    """Whether the step gave a revised skill its answers of before."""
    return step.kind in ("rolled back", "put back") and (
        step.revision < revised.revision or step.expert == revised.expert
    )


def _since(values: Values, learned_at: tuple[int, ...]) -> Values:
    """The matrix without what a skill scored before it was learned, or learned anew."""
    return tuple(
        tuple(value if i >= learned_at[j] else None for j, value in enumerate(row))
        for i, row in enumerate(values)
    )


def _relative_rises(loss: Values, learned_at: tuple[int, ...]) -> tuple[float | None, ...]:
    # A loss is better when lower: the best earlier one is the highest of the negated matrix.
    negated = tuple(tuple(None if v is None else -v for v in row) for row in loss)
    rises = forgetting_per_skill(negated, learned_at)
    found: list[float | None] = []
    for j, rise in enumerate(rises):
        last = loss[-1][j]
        lowest = None if rise is None or last is None else last - rise
        found.append(None if rise is None or not lowest else rise / lowest)
    return tuple(found)
