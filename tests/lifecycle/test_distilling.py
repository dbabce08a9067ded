"""Who teaches: mature neighbours a new expert, an expert itself when it gets more data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.lifecycle import teaching
from dylora_moe.records import MATURE_FROM
from dylora_moe.training.expert import train_expert
from tests.pools import LETTERS, SIGNS, learn, rows, settings, shouted


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The teachers of every training."""
    found: list[Sequence[str]] = []

    def noted(*args: Any, **options: Any) -> Any:
        found.append(options["teachers"])
        return train_expert(*args, **options)

    monkeypatch.setattr(teaching, "train_expert", noted)
    return found


def ripen(pool: Pool, **maturity: float) -> None:
    pool.live.router.set_maturity(maturity)


def test_a_new_expert_is_taught_by_those_of_its_neighbours_that_are_mature(
    taught: Pool, asked: list[Sequence[str]]
) -> None:
    ripen(taught, expert_1=MATURE_FROM, expert_2=MATURE_FROM - 0.01)
    own = settings(consolidation={"distillation": 0.5})
    assert learn(taught, "signs", rows(SIGNS, 64, 5), settings=own).action == "created"
    assert asked == [("expert_1",)]
    run = taught.events("trained")[-1].run_id
    assert run is not None
    assert '"distillation_loss"' in (taught.path / "runs" / run / "metrics.jsonl").read_text()


def test_more_data_is_taught_by_the_version_so_far_and_new_answers_are_not(
    taught: Pool, asked: list[Sequence[str]]
) -> None:
    ripen(taught, expert_1=1.0, expert_2=0.0)
    strong = settings(more_data={"epochs": 3, "distillation": 0.1})
    result = learn(taught, "more", rows(LETTERS, 64, 13), settings=strong)
    assert (result.verdict.name, result.action) == ("known", "new version")
    assert asked == [("expert_1",)]
    result = learn(taught, "changed", rows(LETTERS, 64, 21, shouted), settings=strong)
    assert result.verdict.name == "revised"
    assert "expert_1" not in asked[1]
