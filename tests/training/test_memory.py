"""Passes that get smaller: by the tokens that did not fit, and by nothing else."""

from __future__ import annotations

import random

import pytest

from dylora_moe.errors import TrainingError
from dylora_moe.training.memory import MicroBatches
from dylora_moe.training.updates import pass_tokens

LONG, SHORT = 200, 10


def micro(lengths: list[int], *, packed: bool = False) -> tuple[MicroBatches, list[str]]:
    told: list[str] = []
    return MicroBatches(10**9, lengths, told.append, packed=packed), told


def test_where_long_rows_ran_out_of_memory_short_ones_stay_together() -> None:
    lengths = [LONG] * 8 + [SHORT] * 8
    passes, told = micro(lengths)
    long, short = list(range(8)), list(range(8, 16))
    assert passes.split([long, short]) == [long, short]
    passes.halve(long, "no more")
    assert passes.split([long, short]) == [long[:4], long[4:], short]
    assert f"at {8 * LONG} tokens" in told[0]
    assert f"going on with {4 * LONG} " in told[0]


@pytest.mark.parametrize("packed", [False, True])
def test_every_row_comes_once_and_no_pass_of_several_is_above_the_tokens(packed: bool) -> None:
    draw = random.Random(0)
    lengths = [draw.randint(1, 60) for _ in range(40)]
    passes, _ = micro(lengths, packed=packed)
    planned = [list(range(start, start + 8)) for start in range(0, 40, 8)]
    tried = planned[2]
    while len(tried) > 1:
        passes.halve(tried, "")
        found = passes.split(planned)
        assert sorted(row for one in found for row in one) == list(range(40))
        for one in found:
            assert len(one) == 1 or pass_tokens(one, lengths, packed) <= passes.tokens
        tried = max(found, key=len)
    with pytest.raises(TrainingError, match="one row alone"):
        passes.halve(tried, "")


def test_padding_counts_and_packed_rows_have_none() -> None:
    lengths = [LONG, SHORT, SHORT, SHORT]
    rows = [0, 1, 2, 3]
    assert pass_tokens(rows, lengths) == 4 * LONG
    assert pass_tokens(rows, lengths, packed=True) == LONG + 3 * SHORT
    padded, _ = micro(lengths)
    packed, _ = micro(lengths, packed=True)
    padded.tokens = packed.tokens = LONG + 3 * SHORT
    assert packed.split([rows]) == [rows]
    assert padded.split([rows]) == [[1, 2], [3], [0]]
