"""What a run leaves behind once it is settled."""

from __future__ import annotations

from typing import Any

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.lifecycle import creating
from dylora_moe.lifecycle.gate import GateDecision
from tests.pools import SIGNS, learn, rows


def left(pool: Pool) -> list[set[str]]:
    runs = [path for path in (pool.path / "runs").iterdir() if not path.name.startswith(".")]
    return [{file.name for file in run.iterdir()} for run in sorted(runs)]


def test_a_promoted_run_leaves_its_journal_and_its_numbers(taught: Pool) -> None:
    assert left(taught) == [{"journal.json", "metrics.jsonl"}] * 2


def test_a_rejected_run_leaves_no_more(taught: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    weigh = creating.weigh

    def refusing(*args: Any, **options: Any) -> Any:
        scored, _ = weigh(*args, **options)
        return scored, GateDecision(False, {}, "no")

    monkeypatch.setattr(creating, "weigh", refusing)
    assert learn(taught, "signs", rows(SIGNS, 64, 5)).action == "rejected"
    assert left(taught) == [{"journal.json", "metrics.jsonl"}] * 3
