"""Pools that were taught once and are copied for each test that changes them."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dylora_moe.build.pool import Pool
from tests import pools
from tests.pools import DIGITS, LETTERS, learn, rows


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    # It walks every object of the test process: longer than a tiny model's whole training.
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
    # Whether the disk really has a file is storage's law.
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pools.save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def empty_folder(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool right after `init`."""
    folder = tmp_path_factory.mktemp("empty") / "pool"
    pools.create(folder, base_folder).close()
    return folder


@pytest.fixture(scope="session")
def taught_folder(empty_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool that has learned `letters` and `digits`."""
    folder = tmp_path_factory.mktemp("taught") / "pool"
    with pools.copied(empty_folder, folder) as pool:
        assert learn(pool, "letters", rows(LETTERS, 64, 3)).action == "created"
        assert learn(pool, "digits", rows(DIGITS, 64, 4)).action == "created"
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Callable[[Path], Pool]]:
    """Copies a pool's folder and opens the copy; closes what it opened."""
    opened: list[Pool] = []

    def make(folder: Path) -> Pool:
        opened.append(pools.copied(folder, tmp_path / f"pool-{len(opened)}"))
        return opened[-1]

    yield make
    for pool in opened:
        pool.close()


@pytest.fixture
def empty(empty_folder: Path, copy: Callable[[Path], Pool]) -> Pool:
    return copy(empty_folder)


@pytest.fixture
def taught(taught_folder: Path, copy: Callable[[Path], Pool]) -> Pool:
    return copy(taught_folder)
