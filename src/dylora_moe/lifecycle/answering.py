"""Generates answers with the pool's experts and says where each came from.

Knows prompts and sampling; knows nothing of files or servers.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dylora_moe.errors import ConfigError, PromptLengthError
from dylora_moe.foundation.seeding import seeded
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.results import Answer
from dylora_moe.lifecycle.text_pieces import OnText, text_of, texts_of_rows
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.model.generation import Generation, generate
from dylora_moe.records import BASE_NAME, Turn
from dylora_moe.routing.routing import Routing
from dylora_moe.text.batching import left_padded
from dylora_moe.text.template import Encoded, encode_prompt, stop_token_id

BATCH_ROWS = 32
"""Prompts that are answered at a time."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn; a temperature of 0 is greedy.

    Attributes:
        seed: of the draws; None leaves torch's own state.
        stop: texts that end an answer and are not part of it.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; give at least 1")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ConfigError(
                f"temperature {self.temperature}, top_p {self.top_p}, top_k {self.top_k}: give a "
                "temperature of 0 or more, top_p above 0 and at most 1, top_k of 0 (off) or more"
            )


def answer(
    live: LivePool,
    prompts: Sequence[str | Sequence[Turn]],
    *,
    expert: str | None = None,
    sampling: Sampling = Sampling(),
    on_text: OnText | None = None,
) -> list[Answer]:
    """Answers prompts, each by the experts its own prompt is routed to, in batches.

    Args:
        expert: alias or id of one expert for all, or `base`; the router decides where None.
        on_text: called after every token with the number of its prompt and the text that it
            completed, which may be none. Together a prompt's texts are its answer.

    Raises:
        PoolError: no such expert.
        DataError: an empty list of turns, or a prompt that leaves no room in the context.
    """
    pinned = _pinned(live, expert)
    tokenizer, stop = live.base.tokenizer, sampling.stop
    encoded = [encode_prompt(prompt, tokenizer, live.fmt) for prompt in prompts]
    found: dict[int, Answer] = {}
    with seeded(sampling.seed, live.base.device):
        for rows in _batches([len(row) for row in encoded], live, sampling):
            batch = [encoded[index] for index in rows]
            told = None if on_text is None else texts_of_rows(tokenizer, rows, stop, on_text)
            generation = generate_batch(live.model, batch, sampling, expert=pinned, on_tokens=told)
            for place, index in enumerate(rows):
                found[index] = _answer(live, generation, place, pinned, sampling)
    return [found[index] for index in range(len(prompts))]


def _pinned(live: LivePool, expert: str | None) -> str | None:
    if expert is None or expert == BASE_NAME:
        return expert
    return live.version(expert).expert_id


def _batches(lengths: Sequence[int], live: LivePool, sampling: Sampling) -> Iterator[list[int]]:
    """Prompts of like length together; alone those whose answer the context cuts short, so that
    the others' is not."""
    context = live.base.context_length
    together = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if context is None or lengths[index] + sampling.max_new_tokens <= context:
            together.append(index)
        elif lengths[index] < context:
            yield [index]
        else:
            raise PromptLengthError(
                f"the prompt is {lengths[index]} tokens long and the base's context {context}, "
                "which leaves no room for an answer; shorten it"
            )
    for first in range(0, len(together), BATCH_ROWS):
        yield together[first : first + BATCH_ROWS]


def generate_batch(
    model: DyLoRAMoE,
    batch: Sequence[Sequence[int]],
    sampling: Sampling,
    **arguments: Any,
) -> Generation:
    """Continues token ids in one batch, as far as the context goes.

    Args:
        model: base, experts and router.
        batch: of any lengths; padded here.
        arguments: of `model.generation.generate`.
    """
    tokenizer = model.base.tokenizer
    ids, mask = left_padded(batch, tokenizer.pad_token_id)
    width = ids.shape[1]
    context = model.base.context_length
    options: dict[str, Any] = {
        "max_new_tokens": min(sampling.max_new_tokens, (context or sys.maxsize) - width),
        "eos_token_id": stop_token_id(tokenizer),
        "do_sample": sampling.temperature > 0,
    }
    if sampling.temperature > 0:
        options |= {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
    else:
        # Some bases ship sampling defaults, which greedy search would warn about.
        options |= {"temperature": None, "top_p": None, "top_k": None}
    if sampling.stop:
        options |= {"stop_strings": list(sampling.stop), "tokenizer": tokenizer}
    return generate(model, ids, mask, **options, **arguments)


def _answer(
    live: LivePool, generation: Generation, row: int, expert: str | None, sampling: Sampling
) -> Answer:
    stop = stop_token_id(live.base.tokenizer)
    tokens = list(
        itertools.takewhile(lambda token: token != stop, generation.answers[row].tolist())
    )
    # A text that stops it ends a row without a stop token; the others of the batch go on.
    while tokens and tokens[-1] == live.base.tokenizer.pad_token_id:
        tokens.pop()
    routing = generation.routing
    if routing is not None and routing.weights.dim() == 3:
        # Token by token: the mean over those that the answer has, the one that stopped it too.
        written = torch.arange(routing.weights.shape[1]) <= len(tokens)
        routing = routing.over_tokens(written.expand(len(routing.weights), -1))
    if routing is None:
        weights = {} if expert in (None, BASE_NAME) else {str(expert): 1.0}
        none = 1.0 if not weights else 0.0
    else:
        given = routing.weights[row].tolist()
        weights = {e: w for e, w in zip(routing.experts, given, strict=True) if w > 0}
        none = float(routing.none[row])
    best = max(weights, key=lambda name: weights[name], default=None)
    return Answer(
        text=text_of(live.base.tokenizer, tokens, sampling.stop),
        expert=BASE_NAME if best is None else live.alias(best),
        version=None if best is None else live.versions[best],
        weights={live.alias(name): weight for name, weight in weights.items()},
        none=none,
        tokens=len(tokens),
    )


def route(live: LivePool, prompts: Sequence[str | Sequence[Turn]]) -> Routing:
    """Where prompts would go, without answering them: at the cost of the trunk alone.

    Where the router decides for each token: by what the first token of the answer is written.
    """
    with torch.no_grad():
        routing: Routing = live.router(prompt_features(live, prompts).to(live.base.device))
    return routing


def prompt_features(
    live: LivePool, prompts: Sequence[str | Sequence[Turn]]
) -> Float[Tensor, "n d_features"]:
    """Tap features of prompts."""
    tokenizer = live.base.tokenizer
    return token_features(live, [encode_prompt(one, tokenizer, live.fmt) for one in prompts])


def token_features(
    live: LivePool, prompts: Sequence[Sequence[int]]
) -> Float[Tensor, "n d_features"]:
    """Tap features of prompts that are encoded already."""
    rows = [Encoded(tuple(ids), (False,) * len(ids), len(ids), "") for ids in prompts]
    return TrunkCache(live.base, rows, folder=live.scratch).features
