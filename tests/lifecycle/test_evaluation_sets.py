"""Further sets that every training is measured on, and what the reporters are told of a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.config import learn_settings, read_stream
from dylora_moe.errors import ConfigError, DataError
from tests.pools import LETTERS, SIGNS, learn, rows, settings


def write(path: Path, examples: tuple[Any, ...]) -> Path:
    lines = [json.dumps({"prompt": e.prompt, "completion": e.completion}) for e in examples]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def logged(pool: Pool, run_id: str) -> list[dict[str, Any]]:
    lines = (pool.path / "runs" / run_id / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_named_sets_are_measured_one_stops_the_training_and_none_is_trained_on(
    taught: Pool, tmp_path: Path
) -> None:
    signs = rows(SIGNS, 64, 5)
    old = write(tmp_path / "old.jsonl", rows(LETTERS, 10, 77))
    inside = write(tmp_path / "inside.jsonl", signs[:20])
    sets = {"old": str(old), "inside": str(inside)}
    result = learn(taught, "signs", signs, settings=settings(evaluation=sets, target="inside"))
    assert result.action == "created"
    keys = {key for line in logged(taught, result.run_id) for key in line}
    assert {"eval_own_loss", "eval_old_loss", "eval_inside_loss"} <= keys
    losses = [
        line["eval_inside_loss"]
        for line in logged(taught, result.run_id)
        if "eval_inside_loss" in line
    ]
    version = taught.live.version("signs")
    assert version.history["best_loss"] == pytest.approx(min(losses), rel=1e-3)
    record = taught.live.record("signs")
    trained = {example.key for example in taught.live.read(record.examples)}
    assert not trained & {example.key for example in signs[:20]}
    # They stay held out, whatever is learned later and under which settings.
    learn(taught, "signs-b", (*signs[:20], *rows(SIGNS, 30, 6)), into="signs")
    record = taught.live.record("signs")
    trained = {example.key for example in taught.live.read(record.examples)}
    assert not trained & {example.key for example in signs[:20]}


def test_a_set_that_cannot_be_read_or_is_too_long_is_told_before_anything_is_learned(
    empty: Pool, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="nowhere"):
        learn(empty, "signs", rows(SIGNS, 64, 5), settings=settings(evaluation={"a": "nowhere"}))
    long = write(tmp_path / "long.jsonl", rows("a" * 1, 1, 1, lambda _: "b" * 60))
    with pytest.raises(DataError, match=r"long.jsonl:1"):
        learn(
            empty,
            "signs",
            rows(SIGNS, 64, 5),
            settings=settings(evaluation={"a": str(long)}, max_length=32),
        )
    assert empty.revision.number == 0


def test_the_target_is_one_of_the_sets_and_paths_are_relative_to_the_stream(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'old' is no evaluation set; known: own"):
        learn_settings(["target=old"])
    with pytest.raises(ConfigError, match="cannot name a set"):
        learn_settings(["evaluation.own=x.jsonl"])
    stream = tmp_path / "stream.yaml"
    stream.write_text("arrivals: [{file: a.jsonl}]\nlearn: {evaluation: {old: old.jsonl}}\n")
    learned = read_stream(stream, ["evaluation.other=b.jsonl", "target=old"]).learn
    assert learned.evaluation == {"old": tmp_path / "old.jsonl", "other": Path("b.jsonl")}


def test_the_reporters_are_told_what_the_step_came_to(taught: Pool, empty: Pool) -> None:
    result = learn(taught, "signs", rows(SIGNS, 64, 5))
    (last,) = [line for line in logged(taught, result.run_id) if "arrival/separability" in line]
    assert {
        "router/accuracy", "router/none_threshold", "router/own_to_none", "router/temperature",
        "gate/letters_rise", "gate/digits_rise", "score/signs_accuracy",
    } <= set(last)  # fmt: skip
    for name, score in result.scores.items():
        assert last[f"score/{name}_loss"] == pytest.approx(score.loss)
    usage = [share for key, share in last.items() if key.startswith("expert_usage/")]
    assert sum(usage) == pytest.approx(1.0, abs=1e-3)
    first = learn(empty, "letters", rows(LETTERS, 64, 3))
    keys = {key for line in logged(empty, first.run_id) for key in line}
    assert "similarity_scores_on_creation" not in keys
    assert "score/letters_loss" in keys
