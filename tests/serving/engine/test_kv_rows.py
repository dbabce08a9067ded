"""A row's logits do not depend on when it came, who stands beside it and who left."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from dylora_moe.foundation.cache_name import CACHE
from dylora_moe.serving.engine import kv_rows
from dylora_moe.serving.engine.kv_rows import RowsCache
from dylora_moe.text.batching import left_padded
from tests.models import FAMILIES, PAD, tiny

PROMPTS = ([9, 20, 31], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50], [60, 7], [70, 71, 72, 73])


class Rows:
    """Continues prompts greedily in one cache, in whatever order they come and go."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.cache = model, RowsCache()
        self.rows: list[list[int]] = []
        self.lengths: list[int] = []

    def join(self, *prompts: list[int]) -> None:
        ids, mask = left_padded(prompts, PAD)
        source = DynamicCache()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self._pass(ids, mask, positions, source)
        lengths = [len(prompt) for prompt in prompts]
        self.cache.take_in(source, lengths)
        self.lengths += lengths
        self.rows += [[int(row.argmax())] for row in logits]

    def step(self) -> None:
        mask = self.cache.before_step().long()
        ids = torch.tensor([[row[-1]] for row in self.rows])
        positions = torch.tensor([[length] for length in self.lengths])
        logits = self._pass(ids, mask, positions, self.cache)
        self.cache.after_step()
        self.lengths = [length + 1 for length in self.lengths]
        for row, one in zip(self.rows, logits, strict=True):
            row.append(int(one.argmax()))

    def leave(self, number: int) -> list[int]:
        self.cache.leave(number)
        gone = self.rows[number]
        for kept in (self.rows, self.lengths):
            last = kept.pop()
            if number < len(kept):
                kept[number] = last  # type: ignore[call-overload]
        return gone

    def _pass(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: object) -> Tensor:
        inputs = {"attention_mask": mask, CACHE: cache, "use_cache": True}
        if self.model.config.model_type != "mpt":
            inputs["position_ids"] = positions
        with torch.no_grad():
            found: Tensor = self.model(input_ids=ids, **inputs).logits[:, -1]
        return found


def alone(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """The tokens after a prompt, each from a pass over everything before it."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_come_and_go_are_each_as_alone(family: str) -> None:
    model = tiny(family)
    rows = Rows(model)
    rows.join(PROMPTS[0])
    for _ in range(3):
        rows.step()
    # Longer than everything there is: what is there has to move.
    rows.join(PROMPTS[1], PROMPTS[2])
    for _ in range(4):
        rows.step()
    first = rows.leave(0)
    rows.join(PROMPTS[3])
    for _ in range(5):
        rows.step()
    kept = dict(zip((2, 1, 3), rows.rows, strict=True))
    assert first == alone(model, PROMPTS[0], 8)
    for number, count in ((1, 10), (2, 10), (3, 6)):
        assert kept[number] == alone(model, PROMPTS[number], count), number


def test_a_cache_that_is_full_grows_and_one_that_has_free_columns_moves() -> None:
    model = tiny()
    rows = Rows(model)
    rows.join(PROMPTS[0])
    for step in range(200):
        rows.step()
        if step == 100:
            rows.join(PROMPTS[2])
        if step == 150:
            long = rows.leave(0)
    assert long == alone(model, PROMPTS[0], 152)
    assert rows.rows[0] == alone(model, PROMPTS[2], 100)


@pytest.mark.parametrize("fails_at", [1, 2, 3, 6])
def test_memory_that_runs_out_in_a_move_harms_no_row_that_is_there(
    fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    rows = Rows(model)
    rows.join(PROMPTS[0])
    for _ in range(3):
        rows.step()
    made, moved = itertools.count(1), kv_rows._moved

    def failing(*given: Any) -> Tensor:
        if next(made) == fails_at:
            raise MemoryError("no room for a layer")
        return moved(*given)

    with monkeypatch.context() as patched:
        patched.setattr(kv_rows, "_moved", failing)
        with pytest.raises(MemoryError):
            # Longer than everything there is: what is there has to move.
            rows.join(PROMPTS[1])
    for _ in range(3):
        rows.step()
    rows.join(PROMPTS[1])
    rows.step()
    assert rows.rows[0] == alone(model, PROMPTS[0], 8)
    assert rows.rows[1] == alone(model, PROMPTS[1], 2)


def test_only_the_columns_of_rows_that_are_there_are_counted() -> None:
    rows = Rows(tiny())
    rows.join(PROMPTS[1])
    rows.join(PROMPTS[2])
    assert (rows.cache.rows, rows.cache.columns) == (2, len(PROMPTS[1]))
    rows.leave(0)
    assert (rows.cache.rows, rows.cache.columns) == (1, len(PROMPTS[2]))
    rows.leave(0)
    assert (rows.cache.rows, rows.cache.columns) == (0, 0)
    # Its numbers are of no row any more.
    rows.join(PROMPTS[3])
    rows.step()
    assert rows.rows[0] == alone(rows.model, PROMPTS[3], 2)


def test_the_buffers_follow_what_is_there() -> None:
    rows = Rows(tiny())
    rows.join(list(range(5, 65)))
    one = rows.cache.bytes
    for _ in range(3):
        rows.join(PROMPTS[0])
    assert rows.cache.bytes == 4 * one
    rows.join(PROMPTS[2])
    assert rows.cache.bytes == 8 * one
    for _ in range(5):
        rows.leave(0)
    rows.join(PROMPTS[0])
    assert rows.cache.bytes < one, "a long prompt's place is given back"
