"""From examples to token ids with their masks: which tokens are trained, which are the prompt.

An example is encoded piece by piece: every piece of prompt and every answer is tokenised by
itself and the ids are joined. So the ids of a prompt are the same with and without its answer, and
no mask is ever guessed from token ids (in SmolLM2 the pad token is the stop token). Knows
tokenizers; nothing of models and batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from dylora_moe.errors import DataError
from dylora_moe.records import Example, Turn
from dylora_moe.text.chat_template import render

PLAIN_TEXT_PROMPT = 16
"""Tokens of a row without a prompt that routing looks at."""

_REWRITTEN = (
    "the base's chat template rewrites earlier answers, so they cannot be masked; "
    "use the plain prompt format or rows with one answer"
)


@dataclass(frozen=True)
class PromptFormat:
    """How prompts are written; fixed for the life of a pool.

    Attributes:
        kind: `plain` (prompt, newline, answer, stop token) or `chat` (the base's chat template).
        system: a system prompt before every conversation that has none; None for none.
    """

    kind: Literal["plain", "chat"] = "plain"
    system: str | None = None


PLAIN = PromptFormat()


@dataclass(frozen=True)
class Encoded:
    """One example as token ids.

    Attributes:
        input_ids: the whole row.
        trained: True where the token itself is a target (answers and their stop tokens); the
            first token never is, since nothing stands before it.
        prompt_length: tokens before the last answer: what routing pools over; at least 1.
        key: the example's hash.
    """

    input_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    prompt_length: int
    key: str

    def __len__(self) -> int:
        return len(self.input_ids)


class _Piece(NamedTuple):
    ids: list[int]
    trained: bool


def encode(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    fmt: PromptFormat = PLAIN,
    max_length: int | None = None,
) -> Encoded:
    """Encodes a row with its answers.

    Every answer of a conversation is trained. A row without a prompt (plain text) is taken as it
    stands in either format, stop token at the end, and routed by its first 16 tokens.

    Args:
        example: the row.
        tokenizer: the base's.
        fmt: the pool's prompt format.
        max_length: the model's context in tokens; None for no limit.

    Raises:
        DataError: the row is longer than `max_length`, or the chat template is missing or refuses
            the turns. Nothing is ever cut off.
    """
    pieces = [*_prompt_pieces(example.turns[:-1], tokenizer, fmt)]
    prompt_length = sum(len(piece.ids) for piece in pieces)
    answer = [*_ids(example.completion, tokenizer), stop_token_id(tokenizer)]
    if not prompt_length:
        pieces.append(_Piece(_begin(tokenizer), False))
    pieces.append(_Piece(answer, True))
    ids = tuple(token for piece in pieces for token in piece.ids)
    trained = [piece.trained for piece in pieces for _ in piece.ids]
    trained[0] = False
    if max_length is not None and len(ids) > max_length:
        raise DataError(_too_long(example, len(ids), max_length))
    if not prompt_length:
        prompt_length = min(PLAIN_TEXT_PROMPT, max(1, len(ids) - 1))
    return Encoded(ids, tuple(trained), prompt_length, example.key)


def encode_all(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    fmt: PromptFormat = PLAIN,
    max_length: int | None = None,
    *,
    drop_long: bool = False,
) -> tuple[list[Encoded], list[Example]]:
    """Encodes rows in order; returns them and the rows that were left out.

    Args:
        examples, tokenizer, fmt, max_length: as in `encode`.
        drop_long: leave out rows longer than `max_length` instead of raising; the caller says so.
    """
    rows: list[Encoded] = []
    dropped: list[Example] = []
    for example in examples:
        encoded = encode(example, tokenizer, fmt, None if drop_long else max_length)
        if max_length is not None and len(encoded) > max_length:
            dropped.append(example)
        else:
            rows.append(encoded)
    return rows, dropped


def encode_prompt(
    prompt: str | Sequence[Turn],
    tokenizer: PreTrainedTokenizerBase,
    fmt: PromptFormat = PLAIN,
) -> list[int]:
    """The ids to generate after: exactly the first `prompt_length` ids of `encode`.

    Args:
        prompt: one user turn as text, or the turns before the answer.
        tokenizer: the base's.
        fmt: the pool's prompt format.

    Raises:
        DataError: there are no turns.
    """
    turns = (Turn("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
    if not turns:
        raise DataError("there is no prompt to answer; plain text rows have none: give one")
    return [token for piece in _prompt_pieces(turns, tokenizer, fmt) for token in piece.ids]


def stop_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends every answer, in training and in generation: the tokenizer's eos.

    Raises:
        DataError: the tokenizer has none.
    """
    found = tokenizer.eos_token_id
    if not isinstance(found, int):
        raise DataError(
            "the base's tokenizer has no end-of-sequence token, so answers could not stop; "
            "set `eos_token` in its tokenizer_config.json"
        )
    return found


def _prompt_pieces(
    turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, fmt: PromptFormat
) -> Iterator[_Piece]:
    if not turns:
        return
    if fmt.system and turns[0].role != "system":
        turns = (Turn("system", fmt.system), *turns)
    if fmt.kind == "chat":
        yield from _chat_pieces(turns, tokenizer)
    else:
        yield from _plain_pieces(turns, tokenizer)


def _plain_pieces(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> Iterator[_Piece]:
    yield _Piece(_begin(tokenizer), False)
    for turn in turns:
        if turn.role == "assistant":
            yield _Piece([*_ids(turn.content, tokenizer), stop_token_id(tokenizer)], True)
        else:
            yield _Piece(_ids(turn.content + "\n", tokenizer), False)


def _chat_pieces(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> Iterator[_Piece]:
    """The template's text up to each answer, the answer, and so on; the last piece is a prompt.

    The template writes answers of the past itself, with whatever ends a turn; the stop token is
    trained there if that is what the template writes.
    """
    stop = str(tokenizer.eos_token)
    written = ""
    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        if not index:
            raise DataError(
                "the conversation begins with an answer, which chat templates do not know; "
                "put a user turn before it or use the plain prompt format"
            )
        before = render(turns[:index], tokenizer)
        after = render(turns[: index + 1], tokenizer, ask=False)
        answer = turn.content if after.startswith(before + turn.content) else turn.content.strip()
        if not before.startswith(written) or not after.startswith(before + answer):
            raise DataError(_REWRITTEN)
        yield _Piece(_ids(before[len(written) :], tokenizer), False)
        ends = after.startswith(stop, len(before) + len(answer))
        yield _Piece(
            [*_ids(answer, tokenizer), *([stop_token_id(tokenizer)] if ends else [])], True
        )
        written = before + answer + (stop if ends else "")
    whole = render(turns, tokenizer)
    if not whole.startswith(written):
        raise DataError(_REWRITTEN)
    yield _Piece(_ids(whole[len(written) :], tokenizer), False)


def _begin(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The begin token, for tokenizers that put one before every text (Llama 2, Gemma)."""
    first = tokenizer("a")["input_ids"][:1]
    return list(first) if first == [tokenizer.bos_token_id] else []


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if not text:
        return []
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def _too_long(example: Example, length: int, limit: int) -> str:
    origin = f"{example.origin}: " if example.origin else ""
    return (
        f"{origin}the row is {length} tokens long, the limit is {limit}; shorten it, let learn "
        "leave such rows out with --drop-long, or raise --max-length if the model's context allows "
        "it"
    )
