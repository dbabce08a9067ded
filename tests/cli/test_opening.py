"""What a server opens, by its settings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dylora_moe.build.reader import PoolReader
from dylora_moe.cli import opening
from dylora_moe.parsing import parse
from dylora_moe.serving.engine.engine import BatchingEngine
from dylora_moe.serving.settings import ServeSettings


@pytest.mark.parametrize(
    ("values", "screened"),
    [({}, True), ({"inbox": {"enabled": True}}, True), ({"screen": False}, False)],
)
def test_prompts_are_screened_unless_that_is_switched_off(
    values: dict[str, Any], screened: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: dict[str, Any] = {}
    pool = SimpleNamespace(jobs=None, path=tmp_path)
    monkeypatch.setattr(BatchingEngine, "open", lambda path, **options: given.update(options))
    monkeypatch.setattr(PoolReader, "open", lambda path: pool)
    monkeypatch.setattr("dylora_moe.serving.jobs.Jobs", lambda *_, **__: None)
    settings = parse(ServeSettings, values, "tests")
    opening.open_served(tmp_path, settings, on_note=lambda note: None)
    assert (given["screen_of"] is not None) is screened
