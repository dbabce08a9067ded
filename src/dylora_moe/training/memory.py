"""Memory that runs out: how it is told from other errors, and micro-batches that get smaller.

Knows errors and lists of rows; knows no model. The effective batch stays the same, so the gradient
does too: only the tokens of one forward pass are halved, so that passes of short rows stay whole.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import psutil
import torch

from dylora_moe.errors import TrainingError
from dylora_moe.training.updates import halved, pass_tokens

_WORDS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator's or the CPU's allocator refused, under any of their names."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _WORDS)


class MicroBatches:
    """Splits the rows of forward passes to the size that fits, which only ever shrinks.

    Args:
        tokens: of the largest forward pass that is planned.
        lengths: tokens of each row there is.
        warn: is told once per halving.
        packed: rows stand behind one another and are not padded.

    Attributes:
        tokens: that a forward pass of more than one row may have, its padding included.
    """

    def __init__(
        self,
        tokens: int,
        lengths: Sequence[int],
        warn: Callable[[str], None],
        *,
        packed: bool = False,
    ) -> None:
        self.tokens = tokens
        self._lengths, self._warn, self._packed = lengths, warn, packed

    def split(self, passes: Sequence[Sequence[int]]) -> list[list[int]]:
        """The same rows in passes that fit."""
        return [
            part
            for rows in passes
            for part in halved(rows, self._lengths, self.tokens, self._packed)
        ]

    def halve(self, tried: Sequence[int], said: str) -> None:
        """Halves what is tried next, and gives the freed memory back.

        Not to be called while the error is being handled: it holds the failed pass's tensors.

        Args:
            tried: rows of the forward pass that did not fit.
            said: what the allocator said.

        Raises:
            TrainingError: a single row did not fit.
        """
        if len(tried) <= 1:
            raise TrainingError(
                f"one row alone does not fit into memory ({said}); shorten the rows (max_length), "
                "switch gradient_checkpointing on, or lower the expert's rank"
            )
        tokens = pass_tokens(tried, self._lengths, self._packed)
        self.tokens = tokens // 2
        self._warn(
            f"memory ran out at {tokens} tokens a forward pass ({len(tried)} rows): going on with "
            f"{self.tokens} at the same effective batch; set batch_size lower and accumulation "
            "higher to avoid the detour"
        )
        release()


def release() -> None:
    """Gives cached memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def used_bytes(device: torch.device) -> int:
    """Most bytes CUDA has had allocated so far; elsewhere the resident bytes of the process now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def first_line(error: BaseException) -> str:
    """What an error says, cut to its first line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
