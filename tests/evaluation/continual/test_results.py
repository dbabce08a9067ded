"""A result comes back from its file as it was, or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dylora_moe.evaluation.continual.results import (
    TextLoss,
    from_json,
    mean_loss,
    read_result,
    to_json,
    write_result,
    write_whole,
)
from tests.evaluation.continual.made_results import result, rows

RESULT = result(
    [
        ("sums", rows({"sums": [1.0, 0.5], "hats": [0.0, 0.0]})),
        ("hats", rows({"sums": [1.0, 0.0], "hats": [1.0, 1.0]})),
    ],
    experts_grown=2,
    borders={"true": [1], "detected": [1], "tolerance": 0, "early": 0},
)


def test_what_is_written_is_read_as_it_was(tmp_path: Path) -> None:
    write_result(tmp_path / "new" / "a.json", RESULT, "mark")
    assert read_result(tmp_path / "new" / "a.json", "mark") == RESULT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_a_file_of_another_fingerprint_counts_for_nothing(tmp_path: Path) -> None:
    write_result(tmp_path / "a.json", RESULT, "mark")
    assert read_result(tmp_path / "a.json", "other") is None


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"format": 1}', "null"])
def test_what_is_no_result_is_none(tmp_path: Path, damage: str) -> None:
    (tmp_path / "a.json").write_text(damage, encoding="utf-8")
    assert read_result(tmp_path / "a.json") is None
    assert read_result(tmp_path / "b.json") is None


def test_a_file_of_another_format_counts_for_nothing(tmp_path: Path) -> None:
    body = json.loads(to_json(RESULT, "mark"))
    (tmp_path / "a.json").write_text(json.dumps(body | {"format": 0}), encoding="utf-8")
    assert read_result(tmp_path / "a.json") is None


def test_the_text_says_its_fingerprint() -> None:
    assert from_json(to_json(RESULT, "mark")) == (RESULT, "mark")


def test_losses_on_text_of_no_skill_come_back_row_by_row() -> None:
    told = replace(RESULT, neutral=(TextLoss("a", 4.0, 2), TextLoss("b", 6.0, 8)))
    assert from_json(to_json(told, "mark"))[0] == told
    assert mean_loss(told.neutral) == pytest.approx(1.0)
    assert mean_loss(()) is None
    # Files of before have none.
    body = json.loads(to_json(RESULT, "mark"))
    del body["neutral"]
    assert from_json(json.dumps(body))[0] == RESULT


def test_a_number_that_json_has_no_word_for_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json(replace(RESULT, base_loss=float("nan")), "mark")


def test_an_interrupted_writing_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "a", "first")

    def broken(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", "second")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["first"]
