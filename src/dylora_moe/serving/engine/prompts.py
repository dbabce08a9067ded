"""Prompts as token ids, encoded in the threads of those who ask, and the room that they leave.

Knows the base's tokenizer, its context and the engine's limits; knows no queue and no model.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from dylora_moe.errors import DataError, PromptLengthError
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.records import Turn
from dylora_moe.serving.engine.limits import Limits
from dylora_moe.text.template import encode_prompt


class Prompts:
    """Encodes prompts; any thread may ask.

    Args:
        live: the pool in memory, of which only what no revision changes is read.
        limits: of the engine.
    """

    def __init__(self, live: LivePool, limits: Limits) -> None:
        self._base, self._fmt, self._limits = live.base, live.fmt, limits
        # A tokenizer can be used by one thread at a time.
        self._one = threading.Lock()

    def encode(self, prompt: str | Sequence[Turn] | Sequence[int]) -> tuple[int, ...]:
        """Its token ids.

        Raises:
            DataError: it is empty, leaves no room for an answer, or has a token that is none.
        """
        if not len(prompt):
            raise DataError("the prompt is empty; give at least one character")
        tokenizer = self._base.tokenizer
        tokens = [one for one in prompt if isinstance(one, int)]
        if len(tokens) == len(prompt):
            size = len(tokenizer)
            if not all(0 <= token < size for token in tokens):
                raise DataError(f"a token is not of this vocabulary; give numbers from 0 to {size}")
        else:
            turns = [one for one in prompt if isinstance(one, Turn)]
            with self._one:
                text = prompt if isinstance(prompt, str) else turns
                tokens = list(encode_prompt(text, tokenizer, self._fmt))
        self._refuse_longer(len(tokens))
        return tuple(tokens)

    def room(self, length: int, wanted: int | None) -> int:
        """Tokens that the answer to a prompt of this length may have.

        Args:
            wanted: as many as that at most; as the limits say where None.

        Raises:
            PromptLengthError: more is wanted than the engine takes.
        """
        context = self._base.context_length
        most = wanted or self._limits.answer_tokens
        if context is not None:
            most = min(most, context - length)
        if length + most > self._limits.tokens:
            raise PromptLengthError(
                f"the prompt is {length} tokens long and the answer up to {most}; together the "
                f"server takes {self._limits.tokens}: shorten it, or give a lower max_tokens"
            )
        return most

    def _refuse_longer(self, length: int) -> None:
        context = self._base.context_length
        if context is not None and length >= context:
            raise PromptLengthError(
                f"the prompt is {length} tokens long and the base's context {context}, which "
                "leaves no room for an answer; shorten it"
            )
        if length >= self._limits.tokens:
            raise PromptLengthError(
                f"the prompt is {length} tokens long and the server takes {self._limits.tokens}, "
                "which leaves no room for an answer; shorten it"
            )
