"""How much an engine takes on at a time.

Knows numbers; knows no rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from dylora_moe.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of an engine.

    Attributes:
        rows: that are answered together, at most.
        tokens: places in the KV cache, prompts and answers together; a row is let in only when
            all of it will fit.
        waiting: requests that may wait.
        prompt_tokens: that are read in one pass between two steps, so that running answers do not
            stand still for long; one prompt alone may have more.
        answer_tokens: of an answer where the request and the context name no bound.
    """

    rows: int = 16
    tokens: int = 32_768
    waiting: int = 256
    prompt_tokens: int = 2_048
    answer_tokens: int = 4_096

    def __post_init__(self) -> None:
        values = (self.rows, self.tokens, self.waiting, self.prompt_tokens, self.answer_tokens)
        if min(values) < 1:
            raise ConfigError(
                f"rows {self.rows}, tokens {self.tokens}, waiting {self.waiting}, prompt_tokens "
                f"{self.prompt_tokens}, answer_tokens {self.answer_tokens}: give positive numbers"
            )
