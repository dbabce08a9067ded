from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dylora_moe.storage import pool_folder
from dylora_moe.storage.pool_folder import Storage
from tests.storage.facts import META


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Storage]:
    storage = pool_folder.create(tmp_path / "pool", META)
    yield storage
    storage.close()
