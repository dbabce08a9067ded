"""A person's rows as a search needs them: to train on, to choose by, and to judge the choice by.

Knows rows, their tokens and trunk states; trains nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dylora_moe.config import LearnSettings
from dylora_moe.errors import DataError
from dylora_moe.foundation.base import Base
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.records import Arrival, Example
from dylora_moe.text.split import validates
from dylora_moe.text.template import PromptFormat, encode_all
from dylora_moe.training.rows import Rows

FEWEST = 8
"""Rows of each part, below which it says nothing."""
_JUDGED = 0.15


@dataclass(frozen=True)
class Skill:
    """One skill's rows.

    Attributes:
        train: to learn from.
        watched: stop a training early and say which settings are better.
        judged: seen by no choice; they say what the choice is worth.
    """

    name: str
    train: Rows
    watched: Rows
    judged: Rows


def parts(arrival: Arrival, fraction: float) -> tuple[list[Example], list[Example], list[Example]]:
    """Rows to train on, to watch and to judge by, each decided by the row's own hash.

    Rows that the person named for validation are watched, and those of the file trained or judged.

    Raises:
        DataError: a part has fewer than `FEWEST` rows.
    """
    judged = [row for row in arrival.examples if _judges(row)]
    rest = [row for row in arrival.examples if not _judges(row)]
    if arrival.validation is not None:
        train, watched = rest, list(arrival.validation)
    else:
        train = [row for row in rest if not validates(row, fraction)]
        watched = [row for row in rest if validates(row, fraction)]
    for part, what in ((train, "train on"), (watched, "choose by"), (judged, "judge by")):
        if len(part) < FEWEST:
            raise DataError(
                f"{arrival.name}: of {len(arrival.examples)} rows {len(part)} are left to {what}, "
                f"and {FEWEST} are needed; bring more rows"
            )
    return train, watched, judged


def read(
    base: Base,
    fmt: PromptFormat,
    arrivals: Sequence[Arrival],
    settings: LearnSettings,
    scratch: Path,
) -> list[Skill]:
    """The skills as tokens, with the trunk states that all trainings share.

    Args:
        scratch: where states are mapped from that memory does not take.

    Raises:
        ConfigError: `max_length` is beyond the base's context.
        DataError: a part with too few rows, or a row that is too long.
    """
    limit, skills = base.limit(settings.max_length), []
    for arrival in arrivals:
        rows = []
        for part in parts(arrival, settings.validation_fraction):
            encoded, _ = encode_all(part, base.tokenizer, fmt, limit, drop_long=settings.drop_long)
            if len(encoded) < FEWEST:
                raise DataError(
                    f"{arrival.name}: {len(encoded)} of {len(part)} rows are no longer than "
                    f"{limit} tokens, and {FEWEST} are needed; allow longer ones: --set max_length"
                )
            rows.append(Rows(tuple(encoded), TrunkCache(base, encoded, folder=scratch)))
        skills.append(Skill(arrival.name, *rows))
    return skills


def fingerprint(arrivals: Sequence[Arrival], told: Sequence[str]) -> str:
    """Of the rows and of all else that decides what a search finds."""
    found = hashlib.sha256("\n".join(told).encode())
    for arrival in arrivals:
        keys = [row.key for row in (*arrival.examples, *(arrival.validation or ()))]
        found.update("\n".join([arrival.name, *keys]).encode())
    return found.hexdigest()[:16]


def _judges(row: Example) -> bool:
    # Another part of the hash than the one that `validates` reads.
    return int(row.key[8:16], 16) / 2**32 < _JUDGED
