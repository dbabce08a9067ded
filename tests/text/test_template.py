from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from dylora_moe.errors import DataError
from dylora_moe.records import Example, Turn, pair
from dylora_moe.text.template import (
    PromptFormat,
    encode,
    encode_all,
    encode_prompt,
    stop_token_id,
)
from tests.models import tiny_tokenizer

LONG = Example(
    (
        Turn("user", "hi"),
        Turn("assistant", "yo there"),
        Turn("user", "and?"),
        Turn("assistant", "bye"),
    )
)
WITH_SYSTEM = Example((Turn("system", "be kind"), *LONG.turns))
FORMATS = [
    PromptFormat(),
    PromptFormat("chat"),
    PromptFormat("plain", "be brief"),
    PromptFormat("chat", "be brief"),
]
ROWS = [pair("3 plums to Oslo", '{"qty": 3}'), LONG, WITH_SYSTEM]


def _trained_text(example: Example, tokenizer: PreTrainedTokenizerFast, fmt: PromptFormat) -> str:
    row = encode(example, tokenizer, fmt)
    return tokenizer.decode([i for i, on in zip(row.input_ids, row.trained, strict=True) if on])


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("example", ROWS)
def test_exactly_the_answers_and_their_stop_tokens_are_trained(
    example: Example, fmt: PromptFormat, tokenizer: PreTrainedTokenizerFast
) -> None:
    answers = [turn.content for turn in example.turns if turn.role == "assistant"]
    wanted = "".join(answer + "<|im_end|>" for answer in answers)
    assert _trained_text(example, tokenizer, fmt) == wanted
    row = encode(example, tokenizer, fmt)
    assert tokenizer.pad_token_id == row.input_ids[-1] == stop_token_id(tokenizer)
    assert row.trained[-1]


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("example", ROWS)
def test_a_prompt_alone_has_the_ids_it_has_before_its_answer(
    example: Example, fmt: PromptFormat, tokenizer: PreTrainedTokenizerFast
) -> None:
    row = encode(example, tokenizer, fmt)
    alone = encode_prompt(example.turns[:-1], tokenizer, fmt)
    assert tuple(alone) == row.input_ids[: row.prompt_length]
    if len(example.turns) == 2:
        assert encode_prompt(example.prompt, tokenizer, fmt) == alone


def test_plain_is_prompt_newline_answer_stop(tokenizer: PreTrainedTokenizerFast) -> None:
    row = encode(pair("hi", "yo"), tokenizer)
    assert tokenizer.decode(row.input_ids) == "hi\nyo<|im_end|>"
    assert row.prompt_length == 3


def test_chat_puts_in_no_system_prompt_of_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    row = encode(pair("hi", "yo"), tokenizer, PromptFormat("chat"))
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>"
    assert tokenizer.decode(row.input_ids) == text
    given = encode(pair("hi", "yo"), tokenizer, PromptFormat("chat", "be kind"))
    assert tokenizer.decode(given.input_ids) == f"<|im_start|>system\nbe kind<|im_end|>\n{text}"


def test_chat_conversations_read_as_the_template_writes_them() -> None:
    tokenizer = tiny_tokenizer()
    row = encode(LONG, tokenizer, PromptFormat("chat"))
    messages = [{"role": turn.role, "content": turn.content} for turn in LONG.turns]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(row.input_ids) + "\n" == whole


def test_a_begin_token_of_the_base_stays_when_its_system_prompt_goes() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}{% if messages[0]['role'] != 'system' %}"
        "<|im_start|>system\nToday is Monday<|im_end|>\n{% endif %}" + str(tokenizer.chat_template)
    )
    ids = encode_prompt("hi", tokenizer, PromptFormat("chat"))
    text = "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == text


def test_a_template_that_knows_no_system_turn_is_taken_as_it_is() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}<s>"
        + str(tokenizer.chat_template)
    )
    ids = encode_prompt("hi", tokenizer, PromptFormat("chat"))
    assert tokenizer.decode(ids[:4]) == "<s><|im_start|>us"
    with pytest.raises(DataError, match=r"refuses these turns \(system, user\): no system"):
        encode_prompt("hi", tokenizer, PromptFormat("chat", "be kind"))


def test_a_template_that_rewrites_the_past_is_refused_for_long_conversations() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = str(tokenizer.chat_template).replace(
        "{{ message['content'] }}", "{{ message['content'] | upper }}"
    )
    assert encode(pair("hi", "yo"), tokenizer, PromptFormat("chat")).prompt_length > 1
    with pytest.raises(DataError, match="rewrites earlier answers"):
        encode(LONG, tokenizer, PromptFormat("chat"))


def test_a_missing_chat_template_says_what_to_do(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template; use the plain prompt format"):
        encode(pair("hi", "yo"), tokenizer, PromptFormat("chat"))


@pytest.mark.parametrize("fmt", FORMATS)
def test_plain_text_is_taken_as_it_stands(
    fmt: PromptFormat, tokenizer: PreTrainedTokenizerFast
) -> None:
    row = encode(Example((Turn("assistant", "x" * 40),)), tokenizer, fmt)
    assert tokenizer.decode(row.input_ids) == "x" * 40 + "<|im_end|>"
    assert row.trained == (False, *[True] * 40)  # nothing stands before the first token
    assert row.prompt_length == 16
    assert encode(Example((Turn("assistant", "x"),)), tokenizer, fmt).prompt_length == 1
    with pytest.raises(DataError, match="no prompt"):
        encode_prompt((), tokenizer, fmt)


def test_a_row_longer_than_the_context_is_refused_and_never_cut(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [pair("hi", "yo", origin="a.jsonl:1"), pair("hi", "y" * 60, origin="a.jsonl:2")]
    with pytest.raises(DataError, match=r"^a.jsonl:2: the row is 64 tokens long, the limit is 63"):
        encode_all(rows, tokenizer, max_length=63)
    kept, dropped = encode_all(rows, tokenizer, max_length=63, drop_long=True)
    assert (len(kept), dropped) == (1, rows[1:])
    assert len(encode(rows[1], tokenizer, max_length=64)) == 64


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        stop_token_id(tokenizer)
