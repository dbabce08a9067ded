"""Times and records a generation token by token, through the `generate` that people call.

A step is one new token for every row: the time between two tokens, with all that `generate` does
between them. Knows the sides' `generate`; knows nothing of how their adapters came about.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import workload
from harness import Options
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria
from transformers import StoppingCriteriaList as Criteria

from dylora_moe.foundation.base import Base
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.model.generation import generate

Generate = Callable[..., Any]
"""Takes options of HF's `generate`; prompts and adapters are bound to it already."""


def ours(model: DyLoRAMoE, ids: Tensor, **choice: Any) -> Generate:
    """The product's own way; `choice` is what its `generate` takes besides HF's options."""
    return lambda **settings: generate(model, ids, **choice, **settings)


def theirs(model: Any, base: Base, ids: Tensor, **choice: Any) -> Generate:
    """PEFT's `generate`; `choice` is what that takes besides HF's options."""

    def run(**settings: Any) -> Any:
        with torch.no_grad():
            return model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pad_token_id=base.tokenizer.pad_token_id,
                **choice,
                **settings,
            )

    return run


def context(options: Options) -> int:
    """Tokens of a prompt."""
    return 16 if options.toy else 256


def steps(options: Options) -> int:
    """Tokens after the first that a generation is timed for."""
    return 3 if options.toy else 32


class _Clock(StoppingCriteria):
    """Notes when each token is there; stops nothing."""

    def __init__(self, options: Options) -> None:
        self._wait = workload.synchronizer(options)
        self.stamps: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self._wait()
        self.stamps.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def time_steps(
    options: Options, generation: Generate, new_tokens: int | None = None
) -> Mapping[str, list[float]]:
    """Seconds of every step and of every prefill, over some generations.

    Args:
        options: warm-up and repeats count whole generations.
        generation: one of the sides.
        new_tokens: steps of one generation; `steps` where None.

    Returns:
        `step`: between two tokens; `prefill`: from the call to the first token.
    """
    count = (steps(options) if new_tokens is None else new_tokens) + 1
    found: dict[str, list[float]] = {"step": [], "prefill": []}
    warmup, repeats = (1, 1) if options.toy else (options.warmup, options.repeats)
    for number in range(warmup + repeats):
        clock = _Clock(options)
        gc.collect()
        gc.disable()
        start = time.perf_counter()
        # Neither end-of-text nor sampling may make the sides' lengths differ.
        generation(
            min_new_tokens=count,
            max_new_tokens=count,
            do_sample=False,
            stopping_criteria=Criteria([clock]),
        )
        gc.enable()
        if number < warmup:
            continue
        found["prefill"].append(clock.stamps[0] - start)
        ends = zip(clock.stamps[1:], clock.stamps[:-1], strict=True)
        found["step"] += [end - begin for end, begin in ends]
    return found


class _Recorder(LogitsProcessor):
    """Keeps each step's logits and makes the given token the next one, so that sides agree."""

    def __init__(self, forced: Tensor) -> None:
        self._forced = forced
        self.logits: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token = self._forced[:, len(self.logits), None]
        self.logits.append(scores.float())
        return torch.full_like(scores, float("-inf")).scatter(-1, token, 0.0)


def record(generation: Generate, forced: Tensor) -> Tensor:
    """Logits `[rows, n, vocabulary]` before each of the forced tokens `[rows, n]`."""
    recorder = _Recorder(forced)
    generation(
        max_new_tokens=forced.shape[1],
        do_sample=False,
        logits_processor=LogitsProcessorList([recorder]),
    )
    return torch.stack(recorder.logits, dim=1)
