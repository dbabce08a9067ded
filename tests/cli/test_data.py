from __future__ import annotations

from pathlib import Path

import pytest

from dylora_moe import config
from dylora_moe.cli.data import marked
from dylora_moe.foundation import base as bases
from dylora_moe.text.preview import Piece, PreviewRow
from tests.cli.conftest import Cli
from tests.models import tiny_base


def test_the_sample_is_a_stream_that_can_be_read(cli: Cli, tmp_path: Path) -> None:
    document = cli("data", "sample", tmp_path / "sample", "--rows", 20, "--json").document
    stream = config.read_stream(Path(document["stream"]))
    assert [str(entry.file) for entry in stream.arrivals] == document["files"]
    assert len(stream.arrivals) >= 6
    assert all(entry.file.is_file() for entry in stream.arrivals)


def test_trained_text_stands_in_brackets_or_in_colour() -> None:
    pieces = (Piece("ask [b]\n", 3, False, True), Piece("answer<end>", 2, True, False))
    row = PreviewRow("f:1", pieces, 5, too_long=False)
    assert marked(row, coloured=False).plain == "ask [b]\n[[answer<end>]]"
    coloured = marked(row, coloured=True)
    assert coloured.plain == "ask [b]\nanswer<end>"
    assert [str(span.style) for span in coloured.spans] == ["dim", "bold green"]


def test_the_help_shows_the_brackets_that_the_preview_writes(cli: Cli) -> None:
    for typed in (["data", "preview", "--help"], ["data", "--help"]):
        assert "[[so]]" in cli(*typed).out


def test_preview_shows_the_mask_and_counts(
    cli: Cli, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "load_base", lambda name, **options: tiny_base())
    ran = cli("data", "preview", rows, "--limit", 1)
    assert ran.code == 0, ran.err
    assert f"{rows}:1:" in ran.out
    assert "p0\n[[c0" in ran.out
    assert "c1" not in ran.out
    document = cli("data", "preview", rows, "--json", "--max-length", 2).document
    assert document["statistics"]["rows"] == 3
    assert len(document["statistics"]["too_long"]) == 3
