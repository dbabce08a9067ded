"""The rows of the gate and what the closed form needs of each: count, mean and the shared scatter.

Knows skills, the experts they go to, and statistics; knows nothing learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dylora_moe.errors import RoutingError
from dylora_moe.foundation.statistics import FeatureStatistics, SharedScatter, double
from dylora_moe.routing.closed_form import LinearRows, WhitenedClasses


@dataclass(frozen=True, slots=True)
class Row:
    """A skill, and the expert its inputs go to."""

    skill_id: str
    expert_id: str


@dataclass(frozen=True, eq=False)
class Class:
    """What is kept of one class's statistics."""

    count: int
    mean: Float[Tensor, " d"]

    def matches(self, statistics: FeatureStatistics) -> bool:
        """Whether these are the statistics it came from, up to rounding."""
        return self.count == statistics.count and torch.allclose(
            self.mean, statistics.mean, rtol=1e-6, atol=1e-9
        )


class RowTable:
    """The skills in order of arrival, and *no expert*.

    Attributes:
        rows: one for each skill.
        classes: of the skills, in the same order.
        none: of *no expert*, None until it is set.
        shared: scatter of all of them.
        dtype: what the closed form is solved in; float32 where it only judges rows.
    """

    def __init__(
        self, d_features: int, shrinkage: float, dtype: torch.dtype = torch.float64
    ) -> None:
        self.shrinkage = shrinkage
        self.dtype = dtype
        self.rows: tuple[Row, ...] = ()
        self.classes: tuple[Class, ...] = ()
        self.none: Class | None = None
        self.shared = SharedScatter(d_features)
        self._whitened: WhitenedClasses | None = None

    @property
    def has_none(self) -> bool:
        """Whether the row of *no expert* is fitted."""
        return self.none is not None

    @property
    def is_empty(self) -> bool:
        """Whether no statistics came yet."""
        return self.none is None and not self.rows

    @property
    def fitted(self) -> tuple[Class, ...]:
        """Every class there is, *no expert* first if it is fitted."""
        return ((self.none,) if self.none is not None else ()) + self.classes

    def index(self, skill_id: str) -> int:
        """Place of the skill among the rows.

        Raises:
            RoutingError: the gate has no row for it.
        """
        for index, row in enumerate(self.rows):
            if row.skill_id == skill_id:
                return index
        known = ", ".join(row.skill_id for row in self.rows) or "none"
        raise RoutingError(f"the router has no row for skill {skill_id}; it knows {known}")

    def add(self, row: Row, statistics: FeatureStatistics) -> None:
        """Appends a skill."""
        if any(row.skill_id == old.skill_id for old in self.rows):
            raise RoutingError(
                f"skill {row.skill_id} has a row already; extend it or give the new one another id"
            )
        self._whitened = None
        self.shared.add(statistics)
        self.rows += (row,)
        self.classes += (Class(statistics.count, statistics.mean),)

    def extend(self, skill_id: str, statistics: FeatureStatistics) -> None:
        """Merges a further batch into a skill."""
        index = self.index(skill_id)
        old = self.classes[index]
        self._whitened = None
        # Its scatter is in the sum already: merging with none gives just what the batch adds.
        merged = FeatureStatistics(old.count, old.mean, root=old.mean.new_zeros(0, len(old.mean)))
        merged = merged.merge(statistics)
        merged.add_to(self.shared.total)
        self.shared.count += statistics.count
        kept = list(self.classes)
        kept[index] = Class(merged.count, merged.mean)
        self.classes = tuple(kept)

    def remove(self, skill_id: str, statistics: FeatureStatistics) -> int:
        """Takes a skill out and returns where it was."""
        index = self.index(skill_id)
        self._check(self.classes[index], statistics, f"skill {skill_id}")
        self._whitened = None
        self.shared.subtract(statistics)
        self.rows = self.rows[:index] + self.rows[index + 1 :]
        self.classes = self.classes[:index] + self.classes[index + 1 :]
        return index

    def set_none(self, statistics: FeatureStatistics, replaces: FeatureStatistics | None) -> None:
        """Sets or replaces the class of *no expert*."""
        if self.none is not None:
            if replaces is None:
                raise RoutingError(
                    "the row of no expert is fitted already; hand in the statistics it replaces"
                )
            self._check(self.none, replaces, "no expert")
            self.shared.subtract(replaces)
        self._whitened = None
        self.shared.add(statistics)
        self.none = Class(statistics.count, statistics.mean)

    def whitened(self) -> WhitenedClasses:
        """The classes of `fitted` in the closed form's own space; kept until the table changes."""
        if self._whitened is None:
            means = torch.stack([one.mean for one in self.fitted])
            self._whitened = WhitenedClasses.of(means, self.shared, self.shrinkage, self.dtype)
        return self._whitened

    def solve(self) -> LinearRows:
        """The closed form; the first row is that of *no expert*, zero while it is not fitted."""
        width = self.shared.total.shape[0]
        if self.is_empty:
            zeros = torch.zeros(width, dtype=torch.float64)
            return LinearRows(zeros[None], zeros[:1], zeros, torch.ones_like(zeros))
        rows = self.whitened().rows()
        if self.has_none:
            return rows
        weight = torch.cat([torch.zeros_like(rows.weight[:1]), rows.weight])
        bias = torch.cat([torch.zeros_like(rows.bias[:1]), rows.bias])
        return LinearRows(weight, bias, rows.centre, rows.scale)

    def without(self, features: Float[Tensor, "out d"], labels: Int[Tensor, " out"]) -> RowTable:
        """A table from which some rows of each class are taken out, to judge them by.

        Args:
            features: the rows to take out.
            labels: the row of the gate that each belongs to (0 is *no expert*).

        Raises:
            RoutingError: a class would have no row left.
        """
        left = RowTable(self.shared.total.shape[0], self.shrinkage, torch.float32)
        left.rows = self.rows
        left.shared.count, left.shared.classes = self.shared.count, self.shared.classes
        one_for_each = (self.none, *self.classes)
        counts = torch.tensor([one.count if one is not None else 0 for one in one_for_each])
        out = torch.bincount(labels, minlength=len(counts))
        touched = out.nonzero()[:, 0]
        for label in touched[counts[touched] <= out[touched]][:1].tolist():
            raise RoutingError(f"row {label} of the router has no {int(out[label]) + 1} examples")
        # What all of them add to the sum, as rows of one root.
        rows = double(features)
        place = torch.zeros_like(out).scatter_(0, touched, torch.arange(len(touched)))
        taken, before = out[touched].double()[:, None], counts[touched].double()[:, None]
        sums = torch.zeros(len(touched), rows.shape[1], dtype=torch.float64)
        sums.index_add_(0, place[labels], rows)
        old = torch.stack([_of(one_for_each, label).mean for label in touched.tolist()])
        mean = (old * before - sums) / (before - taken)
        step = (sums / taken - mean) * ((before - taken) * taken / before).sqrt()
        # A row that leaves alone is its own mean.
        several = out[labels] > 1
        inner = rows[several] - (sums / taken)[place[labels[several]]]
        root = torch.cat([inner, step])
        total, root = self.shared.total.to(left.dtype), root.to(left.dtype)
        left.shared.total = torch.addmm(total, root.T, root, alpha=-1)
        left.shared.count -= len(rows)
        classes = list(one_for_each)
        for index, label in enumerate(touched.tolist()):
            classes[label] = Class(int(counts[label] - out[label]), mean[index])
        left.none = classes[0]
        left.classes = tuple(one for one in classes[1:] if one is not None)
        return left

    @staticmethod
    def _check(kept: Class, statistics: FeatureStatistics, what: str) -> None:
        if not kept.matches(statistics):
            raise RoutingError(
                f"these are not the statistics that {what} was fitted on ({statistics.count} rows, "
                f"the router has {kept.count}); hand in all that was added for it"
            )


def _of(classes: tuple[Class | None, ...], label: int) -> Class:
    found = classes[label]
    assert found is not None
    return found
