from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from dylora_moe.errors import DataError
from dylora_moe.records import Example, Turn, pair
from dylora_moe.text.preview import Piece, preview
from dylora_moe.text.synthetic import generate
from dylora_moe.text.template import PromptFormat, encode


def test_the_pieces_are_the_row_as_trained(tokenizer: PreTrainedTokenizerFast) -> None:
    found = preview([pair("hi", "yo")], tokenizer).rows[0]
    assert found.pieces == (
        Piece("hi\n", 3, trained=False, prompt=True),
        Piece("yo<|im_end|>", 3, trained=True, prompt=False),
    )


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_joined_pieces_are_the_whole_row(kind: str, tokenizer: PreTrainedTokenizerFast) -> None:
    fmt = PromptFormat("chat" if kind == "chat" else "plain")
    turns = (*(Turn("user", "hi"), Turn("assistant", "yo")) * 2,)
    rows = [Example(turns), Example((Turn("assistant", "just text, and a good deal of it"),))]
    for example, row in zip(rows, preview(rows, tokenizer, fmt).rows, strict=True):
        encoded = encode(example, tokenizer, fmt)
        assert "".join(piece.text for piece in row.pieces) == tokenizer.decode(encoded.input_ids)
        assert sum(piece.tokens for piece in row.pieces if piece.trained) == sum(encoded.trained)
        prompt = sum(piece.tokens for piece in row.pieces if piece.prompt)
        assert prompt == encoded.prompt_length


def test_statistics_count_all_rows_and_name_the_long_ones(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [*generate("orders", 200), pair("hi", "y" * 300, origin="a.jsonl:9")]
    found = preview(rows, tokenizer, max_length=256, show=2)
    assert len(found.rows) == 2
    assert found.statistics.rows == 201
    assert found.statistics.too_long == ("a.jsonl:9",)
    assert found.statistics.longest == 304
    encoded = [encode(row, tokenizer) for row in rows]
    assert found.statistics.tokens == sum(len(row) for row in encoded)
    trained = sum(sum(row.trained) for row in encoded)
    assert found.statistics.trained_share == pytest.approx(trained / found.statistics.tokens)
    assert found.statistics.grouped_padding < 0.1
    assert found.statistics.packed_unused < 0.1
    assert found.statistics.grouped_padding < found.statistics.shuffled_padding


def test_rows_that_are_all_too_long_still_preview(tokenizer: PreTrainedTokenizerFast) -> None:
    found = preview([pair("hi", "yo", origin="a:1")], tokenizer, max_length=3)
    assert found.rows[0].too_long
    assert found.statistics.packed_sequences == 0


def test_no_rows_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="nothing to preview"):
        preview([], tokenizer)
