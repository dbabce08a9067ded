"""Finishes greedy answers whose beginning is known.

Knows token ids and where each answer has to end; knows nothing of skills or scores.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from dylora_moe.experts.gates import Gates
from dylora_moe.lifecycle.answering import BATCH_ROWS, Sampling, generate_batch
from dylora_moe.lifecycle.text_pieces import text_of
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.text.template import stop_token_id

_LONGEST_ANSWER = 256
"""Tokens."""


@dataclass(frozen=True, slots=True)
class Begun:
    """An answer to be finished.

    Attributes:
        prompt: token ids.
        tokens: what greedy decoding writes first; none, some or all of the answer.
        limit: tokens of the whole answer, at most.
        gates: one row of weights, decided by the prompt. Where None, the router decides by all it
            is given: it would take the answer's beginning for a part of the prompt, so none may be
            known then.
    """

    prompt: Sequence[int]
    tokens: Sequence[int]
    limit: int
    gates: Gates | None = None


def complete(model: DyLoRAMoE, begun: Sequence[Begun], *, rows: int = BATCH_ROWS) -> list[str]:
    """The texts of greedy answers; only what is not known of them is generated.

    Those with as much left to write share a batch. Each is cut at its own limit, so that its text
    does not depend on the others.

    Args:
        model: base, experts and router.
        begun: all with gates of the same experts, or all without.
        rows: of a batch, at most.
    """
    tokenizer = model.base.tokenizer
    stop, context = stop_token_id(tokenizer), model.base.context_length or sys.maxsize
    limits = [min(row.limit, context - len(row.prompt)) for row in begun]
    answers = [[*row.tokens][:limit] for row, limit in zip(begun, limits, strict=True)]
    left = [
        0 if stop in answer else limit - len(answer)
        for answer, limit in zip(answers, limits, strict=True)
    ]
    inputs = [[*row.prompt, *answer] for row, answer in zip(begun, answers, strict=True)]
    for batch in _batches([len(row) for row in inputs], left, context, rows):
        own = [left[row] for row in batch]
        generation = generate_batch(
            model,
            [inputs[row] for row in batch],
            Sampling(max_new_tokens=max(own)),
            gates=_joined([begun[row].gates for row in batch]),
            stopping_criteria=StoppingCriteriaList([_OwnEnds(own)]),
        )
        for row, tokens in zip(batch, generation.answers.tolist(), strict=True):
            answers[row] += tokens[: left[row]]
    return [text_of(tokenizer, answer, ()) for answer in answers]


def answer_limit(targets: int) -> int:
    """The longest answer of a row in tokens: 8 more than it is to have, rounded up to a power of
    two: room for one that is worded otherwise."""
    return min(_LONGEST_ANSWER, 1 << (targets + 7).bit_length())


def _joined(gates: Sequence[Gates | None]) -> Gates | None:
    given = [one for one in gates if one is not None]
    return Gates(given[0].experts, torch.cat([one.weights for one in given])) if given else None


def _batches(
    lengths: Sequence[int], left: Sequence[int], context: int, most: int = BATCH_ROWS
) -> Iterator[list[int]]:
    """Rows that have tokens left to write, those with few first; none of a batch gets past the
    context before all have written theirs."""
    rows: list[int] = []
    for row in sorted((row for row in range(len(left)) if left[row]), key=lambda row: left[row]):
        longest = max(lengths[row] for row in [*rows, row])
        if rows and (len(rows) == most or longest + left[row] > context):
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


class _OwnEnds(StoppingCriteria):
    """Ends each row after its own number of new tokens."""

    def __init__(self, left: Sequence[int]) -> None:
        self._left = torch.tensor(left)
        self._written = 0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self._written += 1
        return (self._left <= self._written).to(input_ids.device)
