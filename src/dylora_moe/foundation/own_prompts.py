"""Texts that the base writes by itself: what foreign input looks like, with no outside data.

The row for *no expert* is fitted on them. Knows sampling; knows nothing of features or routing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dylora_moe.foundation.base import Base

_BATCH = 96
_MARK = "\x02"
_CUTS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96)


def write_own_prompts(
    base: Base,
    count: int,
    *,
    seed: int = 0,
    max_tokens: int = 96,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Samples `count` prompts at temperature 1, half after the begin token and half after the
    opening of a user's turn (where the tokenizer has a chat template).

    Prompts come in many lengths, so each is a piece of `_CUTS` tokens at most; a text that is
    longer than its piece gives a second one from where the first ended. The same seed gives the
    same prompts on the same machine. `progress` is called with (texts written, texts in all).
    """
    starts = _starts(base)
    texts_wanted = max(len(starts), (count + 1) // 2)
    draw = random.Random(seed)
    prompts: list[str] = []
    written = 0
    devices = [base.device] if base.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for index, start in enumerate(starts):
            share = texts_wanted // len(starts) + (index < texts_wanted % len(starts))
            for tokens in _sample(base, start, share, max_tokens):
                prompts.extend(_pieces(base, tokens, draw))
                written += 1
                if progress is not None:
                    progress(written, texts_wanted)
    draw.shuffle(prompts)
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
def _sample(base: Base, start: list[int], count: int, max_tokens: int) -> Iterator[list[int]]:
    special = set(base.tokenizer.all_special_ids)
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
        for row in sampled[:, len(start) :].tolist():
            yield [token for token in row if token not in special]


def _pieces(base: Base, tokens: list[int], draw: random.Random) -> Iterator[str]:
    cut = draw.choice(_CUTS)
    for piece in (tokens[:cut], tokens[cut : cut + draw.choice(_CUTS)]):
        text = base.tokenizer.decode(piece, skip_special_tokens=True).strip()
        if len(piece) >= _CUTS[0] and text:
            yield text
