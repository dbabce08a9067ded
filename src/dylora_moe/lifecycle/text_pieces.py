"""The text of answers, piece by piece as their tokens fall.

Knows tokens and the texts that end an answer; knows nothing of how they are generated.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from dylora_moe.model.row_tokens import OnTokens, RowTokens
from dylora_moe.text.template import stop_token_id

OnText = Callable[[int, str], None]

_HALF_A_CHARACTER = "\ufffd"
"""What tokenizers put for bytes that are no whole character yet."""


def texts_of_rows(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[int],
    endings: Sequence[str],
    on_text: OnText,
) -> OnTokens:
    """What to hand to a generation so that the text of each of its rows is told.

    Args:
        tokenizer: that the tokens are of.
        prompts: the number that each row is told by.
        endings: texts that end an answer and are not part of it.
        on_text: gets that number and a piece, an empty one too.
    """
    rows = [RowText(tokenizer, endings) for _ in prompts]

    def take(new: RowTokens) -> None:
        on_text(prompts[new.row], rows[new.row].take(new.tokens, new.ended))

    return take


def text_of(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], endings: Sequence[str]
) -> str:
    """The answer that these tokens are, without what ends it."""
    stop = stop_token_id(tokenizer)
    kept = list(itertools.takewhile(lambda token: token != stop, tokens))
    return _until(str(tokenizer.decode(kept, skip_special_tokens=True)), endings)


def beginning_of(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """What every answer that begins with these tokens begins with; empty where the tokenizer
    changes spaces by what follows them."""
    if tokenizer.clean_up_tokenization_spaces:
        return ""
    return text_of(tokenizer, tokens, ()).rstrip(_HALF_A_CHARACTER)


class RowText:
    """The text of one row: the pieces together are the answer.

    Held back is what a later token may still change: half a character, and what may become the
    beginning of a text that ends the answer.

    Args:
        tokenizer: that the tokens are of.
        endings: texts that end the answer and are not part of it.

    Attributes:
        stopped: whether one of the endings has come.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, endings: Sequence[str]) -> None:
        self._tokenizer, self._endings = tokenizer, endings
        self._tokens: list[int] = []
        self._sent = 0
        self.stopped = False

    def take(self, tokens: Sequence[int], ended: bool) -> str:
        """What new tokens settle.

        Args:
            tokens: in their order, the stop token among them.
            ended: nothing follows.
        """
        self._tokens.extend(tokens)
        whole = text_of(self._tokenizer, self._tokens, ())
        text = _until(whole, self._endings)
        self.stopped = self.stopped or len(text) < len(whole)
        settled = len(text)
        if not (ended or self.stopped):
            text = text.rstrip(_HALF_A_CHARACTER)
            settled = len(text) - max((_overlap(text, e) for e in self._endings), default=0)
        piece = text[self._sent : settled]
        self._sent = max(self._sent, settled)
        return piece


def _until(text: str, endings: Sequence[str]) -> str:
    for ending in endings:
        text = text.partition(ending)[0]
    return text


def _overlap(text: str, ending: str) -> int:
    """How many characters at the end of the text are the beginning of the ending."""
    return next((n for n in range(len(ending) - 1, 0, -1) if text.endswith(ending[:n])), 0)
