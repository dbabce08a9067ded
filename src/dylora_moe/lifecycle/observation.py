"""An arrival as the learner sees it: rows split, encoded, and run through the trunk once.

Knows data and the base; knows nothing of what the pool already has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.errors import DataError
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.records import Arrival, Example
from dylora_moe.routing.routing import Granularity
from dylora_moe.text.split import split
from dylora_moe.training.rows import Rows


@dataclass(frozen=True, eq=False)
class Observation:
    """What was seen of an arrival.

    Attributes:
        name: of the arrival.
        train_examples, validation_examples: the split's two sides.
        train: encoded training rows with their trunk states.
        validation: the same of the validation rows; None where there are none.
        tokens: of all rows.
        answer_tokens: trained tokens of all rows.
        trunk_seconds: time the trunk took over all rows.
    """

    name: str
    train_examples: tuple[Example, ...]
    validation_examples: tuple[Example, ...]
    train: Rows
    validation: Rows | None
    tokens: int
    answer_tokens: int
    trunk_seconds: float

    @property
    def features(self) -> Float[Tensor, "n d_features"]:
        """Tap features of the training rows: what library and router are fitted on."""
        return self.train.features

    @property
    def all_features(self) -> Float[Tensor, "n d_features"]:
        """Tap features of all rows: what the verdict is given on."""
        if self.validation is None:
            return self.train.features
        return torch.cat([self.train.features, self.validation.features])

    @property
    def rows(self) -> int:
        return len(self.train_examples) + len(self.validation_examples)


def observe(
    live: LivePool,
    arrival: Arrival,
    *,
    fraction: float,
    max_length: int | None = None,
    apart: frozenset[str] = frozenset(),
    granularity: Granularity | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Observation:
    """Splits and encodes an arrival and takes its trunk states.

    Args:
        fraction: share of the new rows that validate, where the arrival names no validation rows.
        max_length: tokens; the model's context where None.
        apart: keys of further rows that never train.
        granularity: of the routing that they will be learned under; what the pool has where None.
        progress: called with (rows done, rows in all).

    Raises:
        DataError: no rows to train on, or a row longer than the limit.
    """
    train, validation = sides(live, arrival, fraction, apart)
    if not train:
        raise DataError(
            f"{arrival.name}: no rows to train on, all {len(validation)} validate; bring more rows "
            "or name a file of them: --validation FILE"
        )
    start = time.perf_counter()
    total = len(train) + len(validation)
    rows = live.encode(
        train,
        max_length=max_length,
        granularity=granularity,
        progress=progress and (lambda done, _: progress(done, total)),
    )
    held_out = (
        live.encode(
            validation,
            max_length=max_length,
            granularity=granularity,
            progress=progress and (lambda done, _: progress(len(train) + done, total)),
        )
        if validation
        else None
    )
    lengths = rows.lengths + (held_out.lengths if held_out is not None else ())
    return Observation(
        name=arrival.name,
        train_examples=tuple(train),
        validation_examples=tuple(validation),
        train=rows,
        validation=held_out,
        tokens=sum(lengths),
        answer_tokens=sum(rows.targets) + (sum(held_out.targets) if held_out else 0),
        trunk_seconds=time.perf_counter() - start,
    )


def sides(
    live: LivePool, arrival: Arrival, fraction: float, apart: frozenset[str] = frozenset()
) -> tuple[list[Example], list[Example]]:
    """The rows to train on and those to validate on.

    A row the pool has stays on the side it is stored on, whatever this arrival says of it: else
    rows that were held out from a file of their own would be trained on when they return, and rows
    that were trained on would flatter the score. Rows of `apart` never train: they validate, unless
    they were trained on before.
    """
    held_out, trained = stored_sides(live)
    held_out |= apart - trained
    given = arrival.validation
    if given is None:
        train, validation = split(arrival.examples, fraction)
    else:
        named = {example.key for example in given}
        train = [example for example in arrival.examples if example.key not in named]
        validation = list(given)
    back = [example for example in train if example.key in held_out]
    forth = [example for example in validation if example.key in trained]
    train = [example for example in train if example.key not in held_out]
    validation = [example for example in validation if example.key not in trained]
    if given is None:
        train += forth
    return [example for example in train if example.key not in apart], validation + back


def stored_sides(live: LivePool) -> tuple[frozenset[str], frozenset[str]]:
    """Keys of the rows that some skill holds out, and of those that some skill was trained on."""
    skills = live.revision.skills
    held_out = live.keys_of(tuple(file for skill in skills for file in skill.validation))
    trained = live.keys_of(tuple(file for skill in skills for file in skill.examples))
    return held_out, trained - held_out
