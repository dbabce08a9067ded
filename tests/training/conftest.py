"""Training in tests: without garbage collection at every start and whenever memory runs out."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    # It walks every object of the test process: longer than a tiny model's whole training.
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
