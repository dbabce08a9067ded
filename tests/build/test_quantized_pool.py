"""A pool on a quantised base stays on it, learns on it, and says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from dylora_moe.build.inspection import inspect_pool
from dylora_moe.build.pool import Pool
from dylora_moe.errors import ConfigError
from dylora_moe.foundation.integer_linear import Int4Linear
from tests.pools import LETTERS, fingerprint, learn, rows


def made(path: Path, base: Path, quantize: str | None) -> Pool:
    return Pool.create(
        path, str(base), tap=2, own_prompts=32, device="cpu", dtype="fp32", quantize=quantize
    )


def test_it_learns_and_opens_on_the_base_it_was_made_on(base_folder: Path, tmp_path: Path) -> None:
    with made(tmp_path / "pool", base_folder, "int4") as pool:
        assert pool.meta["quantize"] == "int4"
        result = learn(pool, "letters", rows(LETTERS, 64, 3))
        assert (result.verdict.name, result.expert) == ("novel", "letters")
        before = fingerprint(pool)
        said = pool.generate("abcdef", max_new_tokens=4)
        assert said.expert == "letters"
    assert inspect_pool(tmp_path / "pool").meta["quantize"] == "int4"
    with Pool.open(tmp_path / "pool", device="cpu", dtype="fp32") as again:
        assert again.live.base.quantize == "int4"
        assert any(isinstance(m, Int4Linear) for m in again.live.base.model.modules())
        assert fingerprint(again) == before
        assert again.generate("abcdef", max_new_tokens=4).text == said.text


def test_a_pool_from_before_there_was_a_choice_opens_on_the_stock_base(
    empty: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert empty.meta["quantize"] is None
    old = {key: value for key, value in empty.meta.items() if key != "quantize"}
    empty.close()
    with Pool.open(empty.path, device="cpu", dtype="fp32") as again:
        monkeypatch.setattr(again._opened, "meta", old)
        assert again.live.base.quantize is None


def test_an_unknown_form_makes_no_pool(base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no quantization 'int2'"):
        made(tmp_path / "pool", base_folder, "int2")
    assert not (tmp_path / "pool").exists()
