from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dylora_moe.build import making
from dylora_moe.build.pool import Pool
from dylora_moe.errors import MissingExtraError, PoolError


def create(path: Path, base: Path, url: str) -> Pool:
    return Pool.create(
        path, str(base), tap=2, own_prompts=32, device="cpu", dtype="fp32", database=url
    )


def test_a_pool_keeps_its_registry_where_it_was_told(base_folder: Path, tmp_path: Path) -> None:
    # A second SQLite file stands for the server.
    server = tmp_path / "server.db"
    with create(tmp_path / "pool", base_folder, f"sqlite:///{server}") as pool:
        revision = pool.revision
    assert server.is_file()
    assert not (tmp_path / "pool" / "dylora.db").exists()
    with Pool.open(tmp_path / "pool") as again:
        assert again.revision == revision


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("postgresql://me@host/pool", MissingExtraError),
        ("postgresql://me:secret@host/pool", PoolError),
        ("me@host", PoolError),
    ],
)
def test_a_database_that_cannot_be_is_refused_before_the_base_is_loaded(
    url: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setattr(making, "load_base", lambda *_, **__: pytest.fail("loaded a base"))
    with pytest.raises(error):
        create(tmp_path / "pool", tmp_path, url)
    assert list(tmp_path.iterdir()) == []
