"""What training will see of some rows: which text is trained, which is the prompt, and the counts.

Returns data; how it is shown is the command line's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from dylora_moe.errors import DataError
from dylora_moe.records import Example
from dylora_moe.text.batching import length_grouped, pack, packed_lengths, plan_padding
from dylora_moe.text.template import PLAIN, Encoded, PromptFormat, encode


@dataclass(frozen=True)
class Piece:
    """A run of tokens of one kind: its text with special tokens spelled out, whether the tokens
    are trained, whether routing pools over them (both, at the start of plain text)."""

    text: str
    tokens: int
    trained: bool
    prompt: bool


@dataclass(frozen=True)
class PreviewRow:
    """One row, its pieces in order; `too_long` if it exceeds the limit and would be refused."""

    origin: str
    pieces: tuple[Piece, ...]
    tokens: int
    too_long: bool


@dataclass(frozen=True)
class PreviewStatistics:
    """Counts over all rows.

    Attributes:
        rows: how many there are.
        tokens: their tokens.
        trained_share: share of the tokens that are trained.
        longest: tokens of the longest row.
        prompt_format: `plain` or `chat`.
        max_length: the limit the rows were held against; None for none.
        too_long: `file:line` of every row over the limit; the figures below leave them out.
        grouped_padding: share of padding in length-grouped batches of `batch_size` rows.
        shuffled_padding: the same for batches in the order of the file.
        packed_unused: share of the packed sequences' capacity that stays empty.
        packed_sequences: how many sequences packing makes.
        packed_capacity: tokens of a packed sequence.
        batch_size: rows in a padded batch.
    """

    rows: int
    tokens: int
    trained_share: float
    longest: int
    prompt_format: str
    max_length: int | None
    too_long: tuple[str, ...]
    grouped_padding: float
    shuffled_padding: float
    packed_unused: float
    packed_sequences: int
    packed_capacity: int
    batch_size: int


@dataclass(frozen=True)
class Preview:
    rows: tuple[PreviewRow, ...]
    statistics: PreviewStatistics


def preview(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    fmt: PromptFormat = PLAIN,
    *,
    max_length: int | None = None,
    show: int = 3,
    batch_size: int = 8,
    capacity: int = 1024,
) -> Preview:
    """Encodes rows exactly as training does and says what it sees.

    Args:
        examples: the rows; the statistics cover them all.
        tokenizer, fmt: the base's, the pool's.
        max_length: limit in tokens; longer rows are named instead of refused.
        show: how many rows to spell out, from the first on.
        batch_size: rows in a padded batch.
        capacity: tokens of a packed sequence; raised to the longest row where that is longer.

    Raises:
        DataError: there are no rows, or one cannot be encoded.
    """
    if not examples:
        raise DataError("there is nothing to preview; name a file with rows")
    encoded = [encode(example, tokenizer, fmt) for example in examples]
    over = [max_length is not None and len(row) > max_length for row in encoded]
    rows = tuple(
        PreviewRow(example.origin, pieces(row, tokenizer), len(row), too_long)
        for example, row, too_long in list(zip(examples, encoded, over, strict=True))[:show]
    )
    tokens = sum(len(row) for row in encoded)
    lengths = [len(row) for row, too_long in zip(encoded, over, strict=True) if not too_long]
    capacity = max([capacity, *lengths])
    in_order = [
        list(range(start, min(start + batch_size, len(lengths))))
        for start in range(0, len(lengths), batch_size)
    ]
    packed = pack(lengths, capacity)
    grouped = length_grouped(lengths, batch_size=batch_size)
    statistics = PreviewStatistics(
        rows=len(encoded),
        tokens=tokens,
        trained_share=sum(sum(row.trained) for row in encoded) / tokens,
        longest=max(len(row) for row in encoded),
        prompt_format=fmt.kind,
        max_length=max_length,
        too_long=tuple(e.origin for e, too_long in zip(examples, over, strict=True) if too_long),
        grouped_padding=plan_padding(lengths, grouped),
        shuffled_padding=plan_padding(lengths, in_order),
        packed_unused=_unused(packed_lengths(lengths, packed), capacity),
        packed_sequences=len(packed),
        packed_capacity=capacity,
        batch_size=batch_size,
    )
    return Preview(rows, statistics)


def pieces(row: Encoded, tokenizer: PreTrainedTokenizerBase) -> tuple[Piece, ...]:
    """The row cut wherever the mask or the prompt ends; joined, the texts are the row."""
    kinds = [(trained, at < row.prompt_length) for at, trained in enumerate(row.trained)]
    found = []
    for (trained, prompt), run in groupby(range(len(row)), key=lambda at: kinds[at]):
        ids = [row.input_ids[at] for at in run]
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        found.append(Piece(str(text), len(ids), trained, prompt))
    return tuple(found)


def _unused(filled: Sequence[int], capacity: int) -> float:
    return 1 - sum(filled) / (capacity * len(filled)) if filled else 0.0
