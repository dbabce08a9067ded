"""The pieces of an answer are the answer, whatever its tokens and wherever it ends."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dylora_moe.lifecycle.text_pieces import RowText, text_of
from tests.models import tiny_tokenizer

WORDS = ["\u2581a", "\u2581b", "a", "b", "\u2581", "\u2581\u00e9", "c", "\n"]
BYTES = [f"<0x{byte:02X}>" for byte in (0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x41)]


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Words that carry their space before them, the first one's taken off, and bytes."""
    names = ["<s>", "</s>", "<unk>", *WORDS, *BYTES]
    vocabulary = {name: number for number, name in enumerate(names)}
    core = Tokenizer(BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="</s>", clean_up_tokenization_spaces=False,
    )  # fmt: skip


def of_bytes() -> PreTrainedTokenizerFast:
    """A token for each byte, as GPT-2's alphabet writes them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<s>", "</s>", *alphabet]
    core = Tokenizer(BPE({name: number for number, name in enumerate(names)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def cleaning() -> PreTrainedTokenizerFast:
    """One that takes spaces off before what follows them."""
    tokenizer = tiny_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    return tokenizer


TOKENIZERS = {"bytes": of_bytes(), "sentencepiece": sentencepiece_like(), "tidy": cleaning()}
named = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


def pieces(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], endings: Sequence[str] = ()
) -> list[str]:
    row, found = RowText(tokenizer, endings), []
    for number, token in enumerate(tokens, 1):
        found.append(row.take([token], number == len(tokens)))
    return found


def answer(tokenizer: PreTrainedTokenizerBase, data: st.DataObject) -> list[int]:
    """Any tokens that this decoder takes piece by piece."""
    ids = st.integers(0, len(tokenizer) - 1)
    tokens: list[int] = data.draw(st.lists(ids, min_size=1, max_size=24))
    assume(written(tokens, tokenizer))
    return tokens


def written(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether bytes of a whole character are not in one run with others that are none: of a run
    that fails in the end this decoder makes something else of what was whole before."""
    text = str(tokenizer.decode(tokens, skip_special_tokens=True))
    names = tokenizer.convert_ids_to_tokens(list(tokens))
    return "\ufffd" not in text or not any(name in BYTES for name in names)


@named
@given(data=st.data())
def test_the_pieces_together_are_the_answer(
    tokenizer: PreTrainedTokenizerBase, data: st.DataObject
) -> None:
    tokens = answer(tokenizer, data)
    assert "".join(pieces(tokenizer, tokens)) == text_of(tokenizer, tokens, ())


@named
@given(data=st.data())
def test_a_text_that_ends_the_answer_is_never_told(
    tokenizer: PreTrainedTokenizerBase, data: st.DataObject
) -> None:
    tokens = answer(tokenizer, data)
    text = text_of(tokenizer, tokens, ())
    start = data.draw(st.integers(0, max(0, len(text) - 1)))
    ending = text[start : start + data.draw(st.integers(1, 3))] or "a"
    told = "".join(pieces(tokenizer, tokens, (ending, "zz")))
    assert told == text_of(tokenizer, tokens, (ending, "zz"))


def test_half_a_character_waits_for_its_other_half() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    tokens = tokenizer.convert_tokens_to_ids(["\u2581a", "<0xC3>", "<0xA9>", "b"])
    assert pieces(tokenizer, tokens) == ["a", "", "\u00e9", "b"]
    tokenizer = TOKENIZERS["bytes"]
    tokens = tokenizer("a\u20acb", add_special_tokens=False)["input_ids"]
    assert pieces(tokenizer, tokens) == ["a", "", "", "\u20ac", "b"]


def test_a_space_behind_a_special_token_stays() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    tokens = tokenizer.convert_tokens_to_ids(["\u2581a", "<s>", "<s>", "\u2581b", "<s>", "\u2581a"])
    assert "".join(pieces(tokenizer, tokens)) == "a b a"


def test_a_long_answer_costs_by_its_length_and_not_by_the_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer, decoded = tiny_tokenizer(), 0
    original = tokenizer.decode

    def count(tokens: Any, **options: Any) -> Any:
        nonlocal decoded
        decoded += len(tokens)
        return original(tokens, **options)

    tokens = tokenizer("the cat sat " * 100, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(tokenizer, "decode", count)
    told = "".join(pieces(tokenizer, tokens, ("nowhere",)))
    assert told == "the cat sat " * 100
    assert decoded <= 4 * len(tokens)


def test_nothing_follows_the_stop_token() -> None:
    tokenizer = tiny_tokenizer()
    tokens = tokenizer("ab", add_special_tokens=False)["input_ids"]
    row = RowText(tokenizer, ("b",))
    told = [row.take(list(itertools.chain(tokens[:1], [tokenizer.eos_token_id], tokens)), False)]
    told.append(row.take(tokens, True))
    assert told == [tokenizer.decode(tokens[:1]), ""]
