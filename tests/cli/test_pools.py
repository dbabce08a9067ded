from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dylora_moe.cli import opening
from tests.cli.conftest import Cli
from tests.cli.fakes import FakePool


def test_init_passes_what_was_typed(
    cli: Cli, pool: FakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        opening, "create_pool", lambda path, **options: (asked.update(options, path=path), pool)[1]
    )
    url = "postgresql+psycopg://me@host/pool"
    ran = cli(
        "init", tmp_path / "pool", "--base", "b", "--format", "chat", "--system", "be kind",
        "--tap", 3, "--targets", "q, v", "--seed", 5, "--own-prompts", 64, "--database", url,
        "--quantize", "int4",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    asked.pop("progress")
    assert asked == {
        "path": tmp_path / "pool", "base": "b", "format": "chat", "system": "be kind", "tap": 3,
        "targets": ["q", "v"], "device": None, "dtype": None, "seed": 5, "own_prompts": 64,
        "database": url, "quantize": "int4",
    }  # fmt: skip
