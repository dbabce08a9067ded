from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dylora_moe.errors import DataError
from dylora_moe.text.batching import (
    collate,
    collate_packed,
    length_grouped,
    pack,
    packed_lengths,
    padding_fraction,
    plan_padding,
)
from dylora_moe.text.template import Encoded

# A loaded machine is no failure.
LAW = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=80)
ROWS = [
    Encoded((5, 6, 7, 8), (False, False, True, True), 2, "a"),
    Encoded((9, 5), (True, True), 1, "b"),
    Encoded((5, 9, 6), (False, True, True), 1, "c"),
]


@LAW
@given(LENGTHS, st.integers(1, 20), st.integers(200, 900), st.integers(0, 9))
def test_batches_hold_every_row_once_and_pad_under_a_tenth(
    lengths: list[int], size: int, tokens: int, seed: int
) -> None:
    batches = length_grouped(lengths, batch_size=size, max_tokens=tokens, seed=seed)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert plan_padding(lengths, batches) <= 0.1 + 1e-9
    for batch in batches:
        assert len(batch) <= size
        assert max(lengths[index] for index in batch) * len(batch) <= tokens


def test_batches_are_full_where_lengths_are_alike() -> None:
    batches = length_grouped([50] * 30, batch_size=8)
    assert sorted(len(batch) for batch in batches) == [6, 8, 8, 8]


def test_a_seed_fixes_the_batches_and_another_changes_them() -> None:
    lengths = [n % 7 + 20 for n in range(100)]
    assert length_grouped(lengths, batch_size=8) == length_grouped(lengths, batch_size=8)
    assert length_grouped(lengths, batch_size=8) != length_grouped(lengths, batch_size=8, seed=1)


@LAW
@given(LENGTHS, st.integers(200, 600))
def test_packing_holds_every_row_once_within_the_capacity(lengths: list[int], room: int) -> None:
    packed = pack(lengths, room)
    assert sorted(index for rows in packed for index in rows) == list(range(len(lengths)))
    filled = packed_lengths(lengths, packed)
    assert max(filled) <= room
    # No two sequences could be one: otherwise the later's rows would have gone to the earlier.
    assert all(a + b > room for a, b in zip(sorted(filled), sorted(filled)[1:], strict=False))


def test_limits_are_checked() -> None:
    with pytest.raises(DataError, match="give batch_size or max_tokens"):
        length_grouped([1])
    with pytest.raises(DataError, match="300 tokens exceeds capacity=256"):
        pack([300], 256)
    with pytest.raises(DataError, match="exceeds max_tokens=64"):
        length_grouped([65], max_tokens=64)


def test_padding_is_neither_attended_nor_trained_nor_pooled() -> None:
    batch = collate(ROWS, pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 5, 9, 9], [5, 9, 6, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    # 9 is pad and stop token at once: trained where it is an answer's, ignored where it pads.
    assert batch["labels"].tolist() == [
        [-100, -100, 7, 8],
        [-100, 5, -100, -100],
        [-100, 9, 6, -100],
    ]
    assert batch["prompt_mask"].sum(1).tolist() == [2, 1, 1]
    assert padding_fraction(batch) == pytest.approx(3 / 12)


def test_packed_rows_carry_the_same_tokens_and_labels_as_padded_ones() -> None:
    packed, padded = collate_packed(ROWS), collate(ROWS, pad_id=0)
    real = padded["attention_mask"].bool()
    for name in ("input_ids", "labels", "prompt_mask"):
        assert torch.equal(packed[name][0], padded[name][real]), name
    assert packed["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 2]]
    assert packed["segment_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 2, 2, 2]]
    assert "attention_mask" not in packed
    assert padding_fraction(packed) == 0.0


def test_the_first_token_of_a_row_is_never_a_target() -> None:
    for batch in (collate(ROWS, 0), collate_packed(ROWS)):
        starts = batch.get("position_ids", torch.arange(4).expand(3, 4)) == 0
        assert (batch["labels"][starts] == -100).all()
