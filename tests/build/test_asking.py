"""Answers as they are written."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dylora_moe.build.pool import Pool
from dylora_moe.errors import PoolError
from dylora_moe.model.streaming import Streamed
from dylora_moe.records import Turn


@pytest.fixture(scope="module")
def pool(taught_folder: Path) -> Pool:
    """Read only, so that it need not be copied."""
    return Pool.open(taught_folder, device="cpu", dtype="fp32")


@pytest.mark.parametrize("prompt", ["abcdef", "123456", "what is it"])
def test_the_pieces_are_the_answer(prompt: str, pool: Pool) -> None:
    stream = pool.stream(prompt, max_new_tokens=24)
    pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == stream.answer.text
    assert stream.answer == pool.generate(prompt, max_new_tokens=24)


def test_the_pieces_are_the_answer_where_a_text_ends_it(pool: Pool) -> None:
    whole = pool.generate("abcdef", max_new_tokens=24).text
    for length in (1, 2, 3):
        ending = whole[5 : 5 + length]
        stream = pool.stream("abcdef", max_new_tokens=24, stop=("no such text", ending))
        assert "".join(stream) == stream.answer.text == whole[: whole.index(ending)]


def test_a_conversation_streams_too_and_a_pinned_expert(pool: Pool) -> None:
    stream = pool.stream([Turn("user", "abcdef")], max_new_tokens=6, expert="digits")
    assert "".join(stream) == pool.generate("abcdef", max_new_tokens=6, expert="digits").text


def test_giving_up_the_iteration_stops_the_generation(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    original = Streamed._take
    monkeypatch.setattr(
        Streamed, "_take", lambda self, text: (written.append(text), original(self, text))[1]
    )
    threads = threading.active_count()
    stream = pool.stream("abcdef", max_new_tokens=200)
    pieces = iter(stream)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads
    assert len(written) < 150
    with pytest.raises(PoolError, match="not finished"):
        _ = stream.answer
    assert pool.generate("abcdef", max_new_tokens=3).expert == "letters"


def test_an_error_in_the_generation_is_raised_where_the_text_is_read(pool: Pool) -> None:
    with pytest.raises(PoolError, match="no expert 'sql'"):
        list(pool.stream("abcdef", expert="sql"))
