"""Tokens as they fall are the tokens of the answer, row by row."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from dylora_moe.errors import ExpertError, RoutingError
from dylora_moe.model.generation import generate
from dylora_moe.model.row_tokens import RowTokens
from dylora_moe.model.streaming import Streamed, stream_tokens
from dylora_moe.routing.routing import Granularity
from tests.model.builders import model_of, prompts
from tests.models import PAD

OPTIONS = {"max_new_tokens": 8, "do_sample": False}


def rows_of(pieces: list[RowTokens], rows: int) -> list[list[int]]:
    """The tokens of each row; every row ends once, and says nothing afterwards."""
    found: list[list[int]] = [[] for _ in range(rows)]
    ended: Counter[int] = Counter()
    for piece in pieces:
        assert not ended[piece.row], "a row went on after its end"
        found[piece.row].extend(piece.tokens)
        ended[piece.row] += piece.ended
    assert set(ended.values()) == {1}
    return found


def written(answers: Tensor, stop: int) -> list[list[int]]:
    """Each answer up to and with its stop token."""
    return [row[: row.index(stop) + 1] if stop in row else row for row in answers.tolist()]


@pytest.mark.parametrize("granularity", ["sequence", "token"])
def test_what_is_streamed_is_what_is_generated(granularity: Granularity) -> None:
    model = model_of()
    model.router.granularity = granularity
    ids, mask = prompts()
    whole = generate(model, ids, mask, eos_token_id=None, **OPTIONS)
    stop = int(whole.answers[0, 3])
    expected = generate(model, ids, mask, eos_token_id=stop, pad_token_id=PAD, **OPTIONS)
    stream = stream_tokens(model, ids, mask, eos_token_id=stop, pad_token_id=PAD, **OPTIONS)
    found = rows_of(list(stream), 3)
    assert found == written(expected.answers, stop)
    assert len(found[0]) <= 4 < max(map(len, found)), "the test needs rows of different length"
    assert torch.equal(stream.result.sequences, expected.sequences)
    assert torch.equal(stream.result.routing.weights, expected.routing.weights)


def test_the_stop_token_may_stand_in_a_configuration() -> None:
    model = model_of()
    ids, mask = prompts()
    stop = int(generate(model, ids, mask, eos_token_id=None, **OPTIONS).answers[0, 3])
    config = GenerationConfig(**OPTIONS, eos_token_id=[stop, 1], pad_token_id=PAD)
    found = rows_of(list(stream_tokens(model, ids, mask, generation_config=config)), 3)
    assert found[0][-1] == stop
    assert len(found[0]) <= 4


def test_a_text_that_ends_a_row_ends_its_stream_alone() -> None:
    model = model_of()
    ids, mask = prompts()
    options = {**OPTIONS, "eos_token_id": None}
    whole = generate(model, ids, mask, **options).answers
    text = model.base.tokenizer.decode(whole[0, 2:4])
    seen = [model.base.tokenizer.decode(row).find(text) for row in whole]
    pieces = list(stream_tokens(model, ids, mask, stop_strings=[text], **options))
    found = rows_of(pieces, 3)
    for row, place in enumerate(seen):
        expected = whole[row].tolist()
        assert found[row] == (expected if place < 0 else expected[: place + len(text)])
    assert len({len(row) for row in found}) > 1, "the test needs a row that goes on"


def test_sampled_sequences_stream_each_by_itself() -> None:
    ids, mask = prompts()
    options = OPTIONS | {"do_sample": True, "num_return_sequences": 2, "eos_token_id": None}
    stream = stream_tokens(model_of(), ids, mask, **options)
    assert rows_of(list(stream), 6) == stream.result.answers.tolist()


def test_beams_are_not_streamed() -> None:
    ids, mask = prompts()
    with pytest.raises(RoutingError, match="not settled"):
        list(stream_tokens(model_of(), ids, mask, num_beams=2, **OPTIONS))


def test_giving_up_ends_the_generation_and_leaves_the_model_as_it_was() -> None:
    model = model_of()
    ids, mask = prompts()
    threads = threading.active_count()
    stream = stream_tokens(model, ids, mask, max_new_tokens=200, eos_token_id=None)
    pieces = iter(stream)
    next(pieces)
    pieces.close()
    assert threading.active_count() == threads
    assert not stream.finished
    with pytest.raises(RoutingError, match="not finished"):
        _ = stream.result
    assert model.experts.slot.current is None


def test_an_error_is_raised_where_the_pieces_are_read() -> None:
    ids, mask = prompts()
    with pytest.raises(ExpertError, match="no expert expert_9"):
        list(stream_tokens(model_of(), ids, mask, expert="expert_9", **OPTIONS))


def test_any_work_can_be_streamed() -> None:
    def work(take) -> str:  # type: ignore[no-untyped-def]
        for number in (1, 2, 3):
            take(number)
        return "done"

    stream = Streamed(work)
    assert list(stream) == [1, 2, 3]
    assert stream.result == "done"
