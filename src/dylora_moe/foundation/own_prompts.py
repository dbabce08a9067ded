"""Texts that the base writes by itself: what foreign input looks like, with no outside data.

The row for *no expert* is fitted on them. Knows sampling; knows nothing of features or routing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dylora_moe.errors import BaseModelError
from dylora_moe.foundation.base import Base
from dylora_moe.foundation.seeding import seeded

_BATCH = 128
_MARK = "\x02"
_TOKENS = 48
_ROUNDS = 8


def write_own_prompts(
    base: Base,
    count: int,
    *,
    seed: int = 0,
    max_tokens: int = _TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Samples `count` texts at temperature 1, half after the begin token and half after the
    opening of a user's turn (where the tokenizer has a chat template).

    Texts stay whole. Cut into pieces of many lengths, which looks more like prompts, they fit
    *no expert* worse: short pieces scatter so much that long foreign prompts no longer stand out
    (docs/lab-log.md). The same seed gives the same texts on the same machine.

    Args:
        max_tokens: length of a text, unless the base ends it sooner.
        progress: called with (texts written, texts in all).

    Raises:
        BaseModelError: the base writes next to nothing by itself.
    """
    starts = _starts(base)
    prompts: list[str] = []
    with seeded(seed, base.device):
        for _ in range(_ROUNDS):
            if len(prompts) >= count:
                break
            for index, start in enumerate(starts):
                missing = count - len(prompts)
                share = -(-missing // (len(starts) - index))
                for text in _sample(base, start, share, max_tokens):
                    prompts.append(text)
                    if progress is not None:
                        progress(len(prompts), count)
    if len(prompts) < count:
        raise BaseModelError(
            f"{base.name} wrote {len(prompts)} of {count} texts by itself and ended the others at "
            "once; a base model of a chat model may do better"
        )
    return prompts[:count]


def _starts(base: Base) -> list[list[int]]:
    tokenizer = base.tokenizer
    begin = tokenizer.bos_token_id
    if begin is None:
        begin = tokenizer.eos_token_id
    starts = [[int(begin)]]
    if tokenizer.chat_template is not None:
        # An empty system turn keeps templates from putting in one of their own; those that refuse
        # a system turn are rendered without.
        text = tokenizer.apply_chat_template([{"role": "user", "content": _MARK}], tokenize=False)
        before = str(text).partition(_MARK)[0]
        last_turn = before.rsplit(str(tokenizer.eos_token), 1)[-1].lstrip("\n")
        if last_turn:
            starts.append(tokenizer(last_turn, add_special_tokens=False).input_ids)
    return starts


@torch.no_grad()
def _sample(base: Base, start: list[int], count: int, max_tokens: int) -> Iterator[str]:
    """Up to `count` texts; the base may end one before it began."""
    pad = base.tokenizer.pad_token_id
    for first in range(0, count, _BATCH):
        rows = min(_BATCH, count - first)
        prompt = torch.tensor([start] * rows, device=base.device)
        sampled: Tensor = base.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max_tokens,
            pad_token_id=pad if pad is not None else base.tokenizer.eos_token_id,
        )
        for row in sampled[:, len(start) :]:
            text = base.tokenizer.decode(row.tolist(), skip_special_tokens=True).strip()
            if text:
                yield text
