from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from dylora_moe.errors import DataError
from dylora_moe.text.reading import read_examples

ROWS = [{"prompt": f"p{n} ü", "completion": f"c{n}", "check": "f1"} for n in range(5)]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]


def _write_every_kind(folder: Path) -> list[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    body = "\n".join(LINES) + "\n"
    (folder / "a.jsonl").write_text(body, encoding="utf-8")
    (folder / "b.ndjson").write_text("\ufeff" + body.replace("\n", "\r\n\r\n"), encoding="utf-8")
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(body.encode()))
    (folder / "d.json").write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    (folder / "e.json").write_text(body, encoding="utf-8")
    cells = [f'"{row["prompt"]}",{row["completion"]},f1' for row in ROWS]
    (folder / "f.csv").write_text("\n".join(["prompt,completion,check", *cells]), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "g.parquet")
    return sorted(folder.iterdir())


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    files = _write_every_kind(tmp_path)
    assert len(files) == 7
    first = read_examples(files[0])
    assert [row.completion for row in first] == ["c0", "c1", "c2", "c3", "c4"]
    for file in files[1:]:
        assert read_examples(file) == first, file.name


def test_origins_name_the_line_of_the_row(tmp_path: Path) -> None:
    origins = {}
    for file in _write_every_kind(tmp_path):
        last = read_examples(file)[-1].origin
        assert last.startswith(f"{file}:")
        origins[file.name] = int(last.rpartition(":")[2])
    assert origins == {
        "a.jsonl": 5,
        "b.ndjson": 9,
        "c.jsonl.gz": 5,
        "d.json": 22,
        "e.json": 5,
        "f.csv": 6,
        "g.parquet": 5,
    }


def test_text_is_one_row_a_paragraph(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\n one\nstill one\n\n\n two \n \n\nthree")
    rows = read_examples(file)
    assert [row.completion for row in rows] == ["one\nstill one", "two", "three"]
    assert [row.origin.rpartition(":")[2] for row in rows] == ["2", "6", "9"]


def test_slices_of_a_file_never_overlap_and_repeated_rows_count_once(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(line for line in LINES for _ in range(2)), encoding="utf-8")
    whole = read_examples(file)
    assert len(whole) == 5
    assert read_examples(file, 2) + read_examples(file, 2, skip=2) == whole[:4]
    assert read_examples(file, skip=4) == whole[4:]


def test_rows_behind_the_last_one_wanted_are_not_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(LINES[0] + "\n" + LINES[1] + "\nbroken", encoding="utf-8")
    assert len(read_examples(file, 2)) == 2


BAD: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.jsonl", b"", "a.jsonl: the file is empty"),
    "blank": ("a.jsonl", b"\n\n", "a.jsonl: the file holds no rows"),
    "header only": ("a.csv", b"prompt,completion\n", "a.csv: the file holds no rows"),
    "empty list": ("a.json", b"[]", "a.json: the file holds no rows"),
    "corrupt": ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', "a.jsonl:3: corrupt JSON"),
    "corrupt list": ("a.json", b'[{"text": "x"},\n{"text": }]', "a.json:2: corrupt JSON"),
    "cut list": ("a.json", b'[{"text": "x"},\n{"text": "y"}', "a.json:2: corrupt JSON"),
    "deep": (
        "a.jsonl",
        b'{"text": "x"}\n{"text": ' + b"[" * 200_000,
        "a.jsonl:2: the JSON is nested too deeply",
    ),
    "deep list": ("a.json", b"[\n" + b"[" * 200_000, "a.json:2: the JSON is nested too deeply"),
    "no object": ("a.jsonl", b'{"text": "x"}\n"y"\n', "a.jsonl:2: a row must be an object"),
    "latin": ("a.jsonl", b'{"text": "x"}\n{"text": "\xfc"}\n', "a.jsonl:2: not UTF-8 .byte 0xfc"),
    "latin csv": ("a.csv", b"text\nok\n\xfcber\n", "a.csv:3: not UTF-8"),
    "mixed": (
        "a.jsonl",
        b'{"text": "x"}\n{"prompt": "x", "completion": "y"}\n',
        "a.jsonl:2: mixed formats: this row is prompt_completion, line 1 is plain",
    ),
    "unknown": ("a.jsonl", b'{"title": "x"}\n', "a.jsonl:1: unknown columns"),
    "empty answer": ("a.jsonl", b'{"prompt": "x", "completion": ""}', "a.jsonl:1: the completion"),
    "cells": ("a.csv", b"prompt,completion\na,b\na,b,c\n", "a.csv:3: the row's cells"),
    "open quote": ("a.csv", b'text\n"a\n', "a.csv:2: corrupt CSV"),
    "gzip": ("a.jsonl.gz", b'{"text": "x"}', "a.jsonl.gz: cannot be read: Not a gzipped"),
    "cut gzip": (
        "a.jsonl.gz",
        gzip.compress(b'{"text": "some words"}' * 9)[:-12],
        "a.jsonl.gz: damaged gzip",
    ),
    "parquet": ("a.parquet", b"PAR1 nothing", "a.parquet: corrupt Parquet"),
    "ending": ("a.docx", b"x", "a.docx: unknown kind of file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_line_with_the_place(case: str, tmp_path: Path) -> None:
    name, body, message = BAD[case]
    (tmp_path / name).write_bytes(body)
    with pytest.raises(DataError, match=message) as error:
        read_examples(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        read_examples(tmp_path)


def test_a_slice_behind_the_end_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(LINES), encoding="utf-8")
    with pytest.raises(DataError, match="skip=5 leaves none of its 5 rows"):
        read_examples(file, skip=5)
    with pytest.raises(DataError, match="at least 1"):
        read_examples(file, 0)
