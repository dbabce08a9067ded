"""Laws of files that a person answers prompts in."""

from __future__ import annotations

from pathlib import Path

import pytest

from dylora_moe.errors import DataError
from dylora_moe.records import Turn, pair
from dylora_moe.text.answers import answer_sheet, checked_answers, read_answers

ASK = (Turn("user", "a\u2028"),)
TALK = (Turn("user", "hi"), Turn("assistant", "hello"), Turn("user", "bye"))


@pytest.mark.parametrize("prompts", [[ASK], [ASK, TALK]])
def test_what_was_filled_in_comes_back_and_what_was_not_is_counted(
    prompts: list[tuple[Turn, ...]], tmp_path: Path
) -> None:
    file = tmp_path / "sheet.jsonl"
    file.write_text(answer_sheet(prompts, ["yes"] * len(prompts)), encoding="utf-8")
    found = read_answers(file, prompts)
    assert [row.turns[:-1] for row in found.examples] == prompts
    assert {row.completion for row in found.examples} == {"yes"}
    file.write_text(answer_sheet(prompts, [" "] * len(prompts)), encoding="utf-8")
    assert read_answers(file, prompts).empty == len(prompts)


def test_a_prompt_is_answered_once_and_only_if_it_was_asked() -> None:
    row = pair("x", "1")
    asked = [row.turns[:-1]]
    assert checked_answers([row, None], asked).empty == 1
    with pytest.raises(DataError, match="answered before"):
        checked_answers([row, pair("x", "2")], asked)
    with pytest.raises(DataError, match="none of this cluster"):
        checked_answers([pair("y", "2")], asked)


def test_a_file_that_cannot_be_read_says_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_answers(tmp_path / "none", [])
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b"\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        read_answers(file, [])
    file.write_text("\n{")
    with pytest.raises(DataError, match=r"bad.jsonl:2: corrupt JSON"):
        read_answers(file, [])
