"""Cuts files into arrivals: batches of rows that come in one after the other, each with a name.

Takes plain arguments; the YAML that describes a stream is read elsewhere.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dylora_moe.errors import DataError
from dylora_moe.records import Arrival, Example
from dylora_moe.text.reading import read_examples

_log = logging.getLogger(__name__)

_GENERIC = {"train", "training", "data", "dataset", "examples", "test"}
"""Names of files that say nothing; the folder's name is taken instead."""


@dataclass(frozen=True)
class ArrivalSource:
    """Where one arrival comes from.

    Attributes:
        path: the data file.
        name: what the arrival is called; None for the file's own name.
        skip: distinct rows to leave out first, so that one file can arrive in slices.
        max_examples: distinct rows to take.
        validation: file with validation rows; None for the split by content hash.
    """

    path: Path
    name: str | None = None
    skip: int = 0
    max_examples: int | None = None
    validation: Path | None = None


def read_arrivals(sources: Sequence[ArrivalSource]) -> list[Arrival]:
    """Reads arrivals in order; every name is distinct, and no row of any validation file is in
    any arrival's rows.

    Raises:
        DataError: as `read_examples`; no sources; or validation files that leave nothing to learn.
    """
    if not sources:
        raise DataError("the stream holds no arrivals; name at least one data file")
    validations = {
        source.validation: tuple(read_examples(source.validation))
        for source in sources
        if source.validation is not None
    }
    held_out = {example.key for rows in validations.values() for example in rows}
    taken: set[str] = set()
    arrivals = []
    for source in sources:
        rows = read_examples(source.path, source.max_examples, skip=source.skip)
        name = _distinct(source.name or name_of(source.path), taken)
        taken.add(name)
        validation = validations[source.validation] if source.validation is not None else None
        arrivals.append(Arrival(name, _without(rows, held_out, source.path), validation))
    return arrivals


def arrivals_from_files(
    paths: Sequence[Path], max_examples: int | None = None, validation: Path | None = None
) -> list[Arrival]:
    """One arrival a file, in the order given; the same limit and validation file for each."""
    return read_arrivals(
        [ArrivalSource(path, max_examples=max_examples, validation=validation) for path in paths]
    )


def name_of(path: Path) -> str:
    """What an arrival from this file is called: the file's name without endings and without a
    leading number of order (`2-robot.jsonl` is `robot`), or its folder's where the file's says
    nothing (`snips/train.jsonl` is `snips`)."""
    stem = path.name.split(".")[0] or path.name
    if stem.lower() in _GENERIC:
        stem = path.absolute().parent.name or stem
    return re.sub(r"^\d{1,2}[-_ ]+(?=\D)", "", stem)


def _distinct(name: str, taken: set[str]) -> str:
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def _without(rows: Sequence[Example], held_out: set[str], path: Path) -> tuple[Example, ...]:
    kept = tuple(example for example in rows if example.key not in held_out)
    if not kept:
        raise DataError(f"{path}: every row is a validation row too; name another validation file")
    if len(kept) < len(rows):
        left = len(rows) - len(kept)
        _log.warning("%s: %d rows are validation rows and are not learned", path, left)
    return kept
