from __future__ import annotations

import json
from pathlib import Path

import pytest

from dylora_moe.errors import DataError
from dylora_moe.text.stream import ArrivalSource, arrivals_from_files, name_of, read_arrivals


def _file(path: Path, rows: range) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": f"p{n}", "completion": f"c{n}"}) for n in rows]
    path.write_text("\n".join(lines))
    return path


def test_each_file_is_an_arrival_with_a_name_of_its_own(tmp_path: Path) -> None:
    paths = [
        _file(tmp_path / "1-robot.jsonl", range(3)),
        _file(tmp_path / "snips" / "train.jsonl", range(4)),
        _file(tmp_path / "5-robot.jsonl", range(3, 6)),
    ]
    arrivals = arrivals_from_files(paths, max_examples=2)
    assert [arrival.name for arrival in arrivals] == ["robot", "snips", "robot-2"]
    assert [len(arrival.examples) for arrival in arrivals] == [2, 2, 2]
    assert arrivals[0].validation is None


def test_a_number_that_is_not_an_order_stays_in_the_name() -> None:
    assert name_of(Path("2024-tickets.jsonl")) == "2024-tickets"
    assert name_of(Path("12-3.jsonl")) == "12-3"
    assert name_of(Path("tickets.jsonl.gz")) == "tickets"


def test_one_file_arrives_in_slices_that_do_not_overlap(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.jsonl", range(10))
    sources = [ArrivalSource(path, "a", max_examples=4), ArrivalSource(path, "a", skip=4)]
    first, second = read_arrivals(sources)
    assert not set(first.examples) & set(second.examples)
    assert (first.name, second.name) == ("a", "a-2")
    assert len(second.examples) == 6


def test_rows_of_a_validation_file_are_learned_in_no_arrival(tmp_path: Path) -> None:
    validation = _file(tmp_path / "held.jsonl", range(2, 5))
    sources = [
        ArrivalSource(_file(tmp_path / "a.jsonl", range(4)), validation=validation),
        ArrivalSource(_file(tmp_path / "b.jsonl", range(4, 8))),
    ]
    first, second = read_arrivals(sources)
    assert [row.prompt for row in first.examples] == ["p0", "p1"]
    assert [row.prompt for row in second.examples] == ["p5", "p6", "p7"]
    assert first.validation is not None
    assert len(first.validation) == 3
    assert second.validation is None


def test_nothing_to_learn_is_an_error(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.jsonl", range(3))
    with pytest.raises(DataError, match="every row is a validation row"):
        arrivals_from_files([path], validation=path)
    with pytest.raises(DataError, match="no arrivals"):
        arrivals_from_files([])
