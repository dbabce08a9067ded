from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from dylora_moe.errors import ConfigError, StorageFullError
from dylora_moe.foundation import trunk_cache
from dylora_moe.foundation.trunk import replay, trunk_states
from dylora_moe.foundation.trunk_cache import TrunkCache
from tests.foundation.batches import Tokens, model_inputs, packed, padded, rows
from tests.models import FAMILIES, tiny_base

ROWS = rows((11, 7, 14, 3, 9, 9))
CHOSEN = [4, 0, 3]


def _chosen() -> list[Tokens]:
    return [ROWS[index] for index in CHOSEN]


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_rows_are_what_the_trunk_gives_for_their_batch(family: str) -> None:
    base = tiny_base(family)
    cache = TrunkCache(base, ROWS, batch_tokens=20)
    batch = padded(_chosen())
    fresh, kept = trunk_states(base, batch), cache.get(CHOSEN)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(kept.hidden[real], fresh.hidden[real], atol=1e-4, rtol=0)
    torch.testing.assert_close(kept.features, fresh.features, atol=1e-4, rtol=0)
    if base.anatomy.packs:
        fresh, kept = trunk_states(base, packed(_chosen())), cache.get(CHOSEN, packed=True)
        torch.testing.assert_close(kept.hidden, fresh.hidden, atol=1e-4, rtol=0)
        torch.testing.assert_close(kept.features, fresh.features, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_replay_from_the_cache_gives_the_full_logits_at_every_real_token(family: str) -> None:
    base = tiny_base(family)
    cache = TrunkCache(base, ROWS)
    batch = padded(_chosen(), width=16)
    with torch.no_grad():
        full = base.model(**model_inputs(batch), use_cache=False).logits
        with replay(base, cache.get(CHOSEN, width=16).hidden):
            replayed = base.model(**model_inputs(batch), use_cache=False).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(replayed[real], full[real], atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beyond_the_budget_states_are_mapped_from_a_file_and_the_same(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    base = tiny_base(dtype=dtype)
    kept = TrunkCache(base, ROWS)
    mapped = TrunkCache(base, ROWS, folder=tmp_path / "states", memory_bytes=10)
    assert mapped.nbytes == sum(len(row.input_ids) for row in ROWS) * 32 * dtype.itemsize
    for index in range(len(ROWS)):
        assert torch.equal(mapped.row(index), kept.row(index))
    assert torch.equal(mapped.features, kept.features)
    assert list((tmp_path / "states").iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_for_routing_by_token_are_every_feature_block_s(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    base = tiny_base(layers=6, tap=4, dtype=dtype)
    plain = TrunkCache(base, ROWS)
    kept = TrunkCache(base, ROWS, per_token=True)
    mapped = TrunkCache(base, ROWS, per_token=True, folder=tmp_path, memory_bytes=10)
    assert mapped.nbytes == kept.nbytes == 4 * plain.nbytes
    layouts = [(padded(_chosen()), False), (packed(_chosen()), True)]
    for batch, is_packed in layouts:
        fresh = trunk_states(base, batch, per_token=True)
        real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        for cache in (kept, mapped):
            found = cache.get(CHOSEN, packed=is_packed)
            assert torch.equal(found.hidden, plain.get(CHOSEN, packed=is_packed).hidden)
            # bf16 rounds a row by the shape of its batch; fp32 hardly.
            atol = 1e-4 if dtype == torch.float32 else 0.1
            for ours, theirs in zip(found.hiddens(), fresh.hiddens(), strict=True):
                torch.testing.assert_close(ours[real], theirs[real], atol=atol, rtol=0)


def test_beyond_the_budget_without_a_folder_is_refused_before_computing() -> None:
    done: list[int] = []
    with pytest.raises(ConfigError, match="give a folder"):
        TrunkCache(tiny_base(), ROWS, memory_bytes=10, progress=lambda n, _: done.append(n))
    assert done == []


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trunk_cache, "_write", full)
    with pytest.raises(StorageFullError, match="no room for the trunk states"):
        TrunkCache(tiny_base(), ROWS, folder=tmp_path, memory_bytes=10)
    assert list(tmp_path.iterdir()) == []


def test_progress_ends_with_every_row_done() -> None:
    seen: list[tuple[int, int]] = []
    cache = TrunkCache(
        tiny_base(), ROWS, batch_tokens=20, progress=lambda done, of: seen.append((done, of))
    )
    assert len(cache) == len(ROWS)
    assert seen[-1] == (6, 6)
    assert len(seen) > 1


def test_a_width_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        TrunkCache(tiny_base(), ROWS).get([0], width=5)
