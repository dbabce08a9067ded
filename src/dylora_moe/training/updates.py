"""Which rows make up which optimizer step, for a whole phase and before it starts.

Knows lengths and a seed; knows no tokens and no model. Because the plan is a function of those, a
run that is resumed sees the same rows in the same order.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from dylora_moe.errors import TrainingError
from dylora_moe.text.batching import length_grouped, pack, packed_lengths, plan_padding
from dylora_moe.training.phases import Phase

Pass = tuple[int, ...]
"""Rows of one forward pass."""

_ROOM = 1.5
"""Padded tokens of a forward pass at most, in tokens of a batch of mean rows: the few longest rows
together would otherwise take as much memory as everything else (SmolLM2, 266 wikisql rows: 1,584
tokens where the other batches have 570, and a peak of 2.5 GB; in several passes 2.0)."""

_FULL_ENOUGH = 0.75
"""Share of an update's rows from which it counts as full: batches of like length vary in size."""


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """The updates of a phase in order.

    Attributes:
        updates: forward passes of each optimizer step.
        epoch_ends: the number of steps after which each epoch is over; the last is the phase's.
        epochs: how many there are, the last perhaps in part.
        padding_fraction: share of padding over all tokens of all forward passes.
        sequence_lengths: tokens of each packed sequence of the first epoch; empty when padded.
        largest_pass: tokens of the largest forward pass, with its padding.
    """

    updates: tuple[tuple[Pass, ...], ...]
    epoch_ends: tuple[int, ...]
    epochs: float
    padding_fraction: float
    sequence_lengths: tuple[int, ...]
    largest_pass: int

    @property
    def steps(self) -> int:
        return len(self.updates)

    def epoch(self, step: int) -> float:
        """Epochs done after so many steps."""
        done = bisect.bisect_right(self.epoch_ends, step)
        if done == len(self.epoch_ends):
            return self.epochs
        start, share = self.epoch_ends[done - 1] if done else 0, min(1.0, self.epochs - done)
        return done + share * (step - start) / (self.epoch_ends[done] - start)


def plan_updates(lengths: Sequence[int], phase: Phase, seed: int) -> UpdatePlan:
    """Plans a phase.

    Every epoch is grouped anew (rows of like length together, so that little is padded) or packed
    anew; each row comes once an epoch.

    Args:
        lengths: tokens of each row there is.
        phase: epochs, batch size, accumulation, packing and how many rows it takes.
        seed: of the choice of rows and of their order.

    Raises:
        TrainingError: no rows.
    """
    if not lengths:
        raise TrainingError(f"phase {phase.name} got no rows to train on; give it at least one")
    chosen = list(range(len(lengths)))
    if phase.max_examples is not None and phase.max_examples < len(chosen):
        chosen = sorted(random.Random(seed).sample(chosen, phase.max_examples))
    updates: list[tuple[Pass, ...]] = []
    ends: list[int] = []
    sequences: tuple[int, ...] = ()
    for epoch in range(math.ceil(phase.epochs)):
        sizes = [lengths[i] for i in chosen]
        grouped = _grouped(
            _batches(sizes, phase, seed + epoch), phase.batch_size * phase.accumulation
        )
        of_epoch = [
            tuple(tuple(chosen[i] for i in rows) for rows in passes)
            for passes in (_within_room(update, sizes, phase) for update in grouped)
        ]
        share = min(1.0, phase.epochs - epoch)
        updates += of_epoch[: math.ceil(share * len(of_epoch))]
        ends.append(len(updates))
        if phase.packing and not epoch:
            sequences = tuple(packed_lengths(lengths, [one for up in of_epoch for one in up]))
    passes_run = [rows for update in updates for rows in update]
    padding = 0.0 if phase.packing else plan_padding(lengths, passes_run)
    largest = max(pass_tokens(rows, lengths, phase.packing) for rows in passes_run)
    return UpdatePlan(tuple(updates), tuple(ends), phase.epochs, padding, sequences, largest)


def _batches(lengths: Sequence[int], phase: Phase, seed: int) -> list[list[int]]:
    if not phase.packing:
        return length_grouped(lengths, batch_size=phase.batch_size, seed=seed)
    mean = sum(lengths) / len(lengths)
    capacity = max(max(lengths), math.ceil(phase.batch_size * mean))
    # Shuffled first: rows of one length would otherwise meet the same neighbours in every epoch.
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    bins = pack([lengths[i] for i in order], capacity, seed=seed)
    return [[order[i] for i in rows] for rows in bins]


def _within_room(
    update: Sequence[Sequence[int]], lengths: Sequence[int], phase: Phase
) -> list[list[int]]:
    """An update's passes, those that are too large in several; its gradient is the same."""
    if phase.packing:
        return [list(rows) for rows in update]
    mean = sum(lengths) / len(lengths)
    room = max(max(lengths), _ROOM * phase.batch_size * mean)
    return [part for rows in update for part in halved(rows, lengths, room)]


def pass_tokens(rows: Sequence[int], lengths: Sequence[int], packed: bool = False) -> int:
    """Tokens of a forward pass: packed behind one another, or padded to the longest row."""
    sizes = [lengths[row] for row in rows]
    return sum(sizes) if packed else len(sizes) * max(sizes)


def halved(
    rows: Sequence[int], lengths: Sequence[int], room: float, packed: bool = False
) -> list[list[int]]:
    """Rows in as many passes as it takes for each to have room, rows of like length together; a row
    that has none alone is a pass all the same."""
    if len(rows) < 2 or pass_tokens(rows, lengths, packed) <= room:
        return [list(rows)]
    order = sorted(rows, key=lambda row: lengths[row])
    half = len(order) // 2
    parts = [order[:half], order[half:]]
    return [small for part in parts for small in halved(part, lengths, room, packed)]


def _grouped(passes: Sequence[Sequence[int]], rows: int) -> list[list[Sequence[int]]]:
    """Passes in order, put together until an update has about `rows` rows."""
    updates: list[list[Sequence[int]]] = []
    current: list[Sequence[int]] = []
    for one in passes:
        current.append(one)
        if sum(len(each) for each in current) >= _FULL_ENOUGH * rows:
            updates.append(current)
            current = []
    return [*updates, current] if current else updates
