"""The tokens of a generation as they fall, row by row, and where each row ends.

Knows HF's stopping criteria; knows nothing of routing or of texts. A streamer of HF's is told the
tokens of all rows at once, padding behind an end included, and not which rows a text has stopped;
a stopping criterion sees both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from dylora_moe.errors import RoutingError


@dataclass(frozen=True, slots=True)
class RowTokens:
    """What one row of a batch got in one step.

    Attributes:
        row: number of the sequence, as in `Generation.sequences`.
        tokens: its new tokens, the stop token among them; none where the row only ends.
        ended: nothing follows for this row. True exactly once for each.
    """

    row: int
    tokens: tuple[int, ...]
    ended: bool


OnTokens = Callable[[RowTokens], None]


class RowListener(StoppingCriteria):
    """Stops rows as the criteria it holds do, and tells of every token on the way.

    Args:
        on_tokens: what it raises ends the generation.
        stop_tokens: a row that gets one of them ends with it.
        criteria: what else ends a row.
    """

    def __init__(
        self, on_tokens: OnTokens, stop_tokens: Collection[int], criteria: StoppingCriteriaList
    ) -> None:
        self._on_tokens, self._stop_tokens, self._criteria = on_tokens, stop_tokens, criteria
        self._open: list[int] | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        stopped = self._criteria(input_ids, scores, **kwargs)
        rows = range(input_ids.shape[0]) if self._open is None else self._open
        tokens, flags = input_ids[:, -1].tolist(), stopped.tolist()
        told = [
            RowTokens(row, (tokens[row],), flags[row] or tokens[row] in self._stop_tokens)
            for row in rows
        ]
        self._open = [one.row for one in told if not one.ended]
        for one in told:
            self._on_tokens(one)
        assert isinstance(stopped, Tensor)
        return stopped

    def finish(self) -> None:
        """Ends the rows that have their number of tokens."""
        for row in self._open or ():
            self._on_tokens(RowTokens(row, (), True))
        self._open = []


def listener(
    on_tokens: OnTokens,
    options: dict[str, Any],
    wished: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerBase,
) -> RowListener:
    """A listener in place of the criteria that the options of `generate` ask for.

    Args:
        on_tokens: gets every row's tokens.
        options: of `generate`; changed so that each criterion is asked once.
        wished: a setting by its name, whether from the options or from what they are laid over.
        tokenizer: of the stop strings, where the options bring none.

    Raises:
        RoutingError: beam search, whose tokens are not settled before the end.
    """
    if (wished("num_beams") or 1) > 1:
        raise RoutingError(
            "the tokens of a beam are not settled before the end, so they cannot be streamed; "
            "leave num_beams out, or do not stream"
        )
    criteria = StoppingCriteriaList(options.pop("stopping_criteria", None) or ())
    if strings := wished("stop_strings"):
        criteria.append(StopStringCriteria(options.get("tokenizer") or tokenizer, strings))
        options["stop_strings"] = None
    stops = wished("eos_token_id")
    stop_tokens = torch.as_tensor([] if stops is None else stops).flatten().tolist()
    found = RowListener(on_tokens, frozenset(stop_tokens), criteria)
    options["stopping_criteria"] = StoppingCriteriaList([found])
    return found
