"""Which rows are for validation: decided by each row's content alone.

The law: whether a row validates depends on its hash and the fraction, on nothing else: not on its
neighbours, its place, its file or the day it came. So a row that returns in a later arrival falls
on the same side again and never leaks into training, as long as a pool keeps one fraction. That is
also why a tiny set is not topped up to a minimum: the rows taken for it would be training rows
elsewhere. It is reported instead.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from dylora_moe.errors import DataError
from dylora_moe.records import Example

_log = logging.getLogger(__name__)

FRACTION = 0.15
AT_LEAST = 8


@dataclass(frozen=True)
class SplitReport:
    """What a split came to.

    Attributes:
        train: rows to train on.
        validation: rows to validate on.
        wanted: how many validation rows a trustworthy score needs.
    """

    train: int
    validation: int
    wanted: int

    @property
    def enough(self) -> bool:
        return self.train > 0 and self.validation >= self.wanted

    @property
    def message(self) -> str:
        """One line for people."""
        line = f"{self.train} rows to train on, {self.validation} to validate on"
        if self.enough:
            return line
        return f"{line}, {self.wanted} wanted; bring more rows or name a file: --validation FILE"


def validates(example: Example, fraction: float = FRACTION) -> bool:
    """Whether this row belongs to validation: the first 32 bits of its hash, read as a number
    from 0 to 1, lie under the fraction."""
    return int(example.key[:8], 16) / 2**32 < fraction


def split(
    examples: Sequence[Example], fraction: float = FRACTION, at_least: int = AT_LEAST
) -> tuple[list[Example], list[Example]]:
    """Splits rows into training and validation by content hash, both in the order given.

    Fewer than `at_least` validation rows are logged as a warning; see the module for why no
    others are taken. `report` says the same as data.

    Raises:
        DataError: the fraction is not between 0 and 1.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"validation fraction {fraction} is out of range; use 0 <= fraction < 1")
    train = [example for example in examples if not validates(example, fraction)]
    validation = [example for example in examples if validates(example, fraction)]
    found = report(train, validation, at_least)
    if not found.enough:
        _log.warning("%s", found.message)
    return train, validation


def report(
    train: Sequence[Example], validation: Sequence[Example], at_least: int = AT_LEAST
) -> SplitReport:
    """Whether a split has enough validation rows, and what to do if not."""
    return SplitReport(len(train), len(validation), at_least)
