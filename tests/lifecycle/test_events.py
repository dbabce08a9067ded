"""Every decision is an event with its numbers."""

from __future__ import annotations

import json

import pytest

from dylora_moe.build.pool import Pool
from tests.pools import LETTERS, SIGNS, learn, rows, settings

NUMBERS = {
    "arrival": {
        "arrival", "rows", "train_rows", "validation_rows", "tokens", "verdict", "reason",
        "separability", "fit", "nearest", "nearest_losses", "base_loss", "seconds", "detector",
        "similarity",
    },
    "trained": {
        "expert", "version", "phases", "steps", "tokens", "seconds", "best_loss", "flops",
        "peak_memory_bytes", "tokens_per_second", "padding_fraction", "trainable_parameters",
        "trainable_share", "bytes",
    },
    "router": {
        "classes", "none_threshold", "own_to_none", "fit_seconds", "balance_loss", "entropy",
        "temperature",
    },
    "gate": {"promoted", "tolerance", "before", "after", "rows_rescored"},
    "promoted": {
        "revision", "action", "expert", "version", "skill", "arrival", "seconds", "waited",
    },
    "waiting": {"arrival", "rows"},
}  # fmt: skip


def test_a_new_expert_is_told_with_all_its_numbers(taught: Pool) -> None:
    seen = len(taught.events())
    result = learn(taught, "signs", rows(SIGNS, 64, 5))
    told = {event.kind: event for event in taught.events()[seen:]}
    assert list(told) == ["arrival", "trained", "router", "gate", "promoted"]
    for kind, event in told.items():
        assert NUMBERS[kind] <= set(event.numbers), kind
        json.dumps(event.numbers, allow_nan=False)
    assert {told[kind].run_id for kind in ("trained", "router", "gate", "promoted")} == {
        result.run_id
    }
    arrival = told["arrival"].numbers
    assert arrival["rows"] == arrival["train_rows"] + arrival["validation_rows"] == 64
    assert set(arrival["separability"]) == set(arrival["fit"]) == {"value", "low", "high"}
    assert set(arrival["nearest_losses"]) <= {"letters", "digits"}
    assert arrival["nearest_losses"]
    assert arrival["similarity"]["classifier"] == arrival["nearest"][0][1]
    assert told["router"].numbers["classes"] == 4
    assert told["promoted"].numbers["revision"] == taught.revision.number
    assert set(told["gate"].numbers["before"]) == {"letters", "digits"}


def test_statistics_alone_and_waiting_are_told_too(taught: Pool) -> None:
    seen = len(taught.events())
    weak = settings(more_data={"learning_rate": 1e-9})
    learn(taught, "more", rows(LETTERS, 64, 13), settings=weak)
    learn(taught, "few", rows(SIGNS, 8, 5))
    told = [event for event in taught.events()[seen:] if event.kind != "warning"]
    kinds = [event.kind for event in told]
    assert kinds == ["arrival", "router", "gate", "promoted", "arrival", "waiting"]
    for event in told:
        assert NUMBERS[event.kind] <= set(event.numbers), event.kind
    assert told[3].numbers["action"] == "statistics"


def test_the_scores_of_the_revisions_in_order_are_the_accuracy_matrix(taught: Pool) -> None:
    learn(taught, "signs", rows(SIGNS, 64, 5))
    matrix = []
    for revision in taught.registry.revisions()[1:]:
        assert revision.scores is not None
        stored = json.loads(taught.artifacts.open(revision.scores).read_bytes())
        matrix.append({card["name"]: card for card in stored["skills"].values()})
    assert [list(row) for row in matrix] == [
        ["letters"], ["letters", "digits"], ["letters", "digits", "signs"],
    ]  # fmt: skip
    for card in matrix[-1].values():
        assert {"name", "loss", "accuracy", "rows", "pinned_loss", "to"} <= set(card)
        assert sum(card["to"].values()) == pytest.approx(1.0, abs=1e-3)
        assert card["accuracy"] is not None


def test_numbers_of_a_run_lie_in_its_folder_under_the_keys_people_know(taught: Pool) -> None:
    result = learn(taught, "signs", rows(SIGNS, 64, 5))
    lines = (taught.path / "runs" / result.run_id / "metrics.jsonl").read_text().splitlines()
    keys = {key for line in lines for key in json.loads(line)}
    assert {
        "loss", "eval_own_loss", "grad_norm/router", "grad_norm/expert_3", "routing_entropy",
        "balance_loss", "similarity_scores_on_creation", "padding_fraction", "tokens_per_second",
    } <= keys  # fmt: skip
    assert any(key.startswith("expert_usage/") for key in keys)
