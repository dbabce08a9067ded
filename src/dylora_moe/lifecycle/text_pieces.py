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
    beginning of a text that ends the answer. Each token is decoded with the one or two before it
    and not with the whole answer, whose cost would grow with the square of its length.

    Args:
        tokenizer: that the tokens are of.
        endings: texts that end the answer and are not part of it.

    Attributes:
        stopped: whether one of the endings has come.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, endings: Sequence[str]) -> None:
        self._tokenizer, self._endings = tokenizer, endings
        self._stop = stop_token_id(tokenizer)
        # Spaces that are mended by what follows them need the whole answer.
        self._moves = not tokenizer.clean_up_tokenization_spaces
        self._tokens: list[int] = []
        # Tokens before `_read` are settled; those from `_from` on are decoded again, as what
        # stands before a token may decide whether it begins with a space.
        self._from = self._read = self._given = 0
        self._held = ""
        self._is_over = self.stopped = False

    def take(self, tokens: Sequence[int], ended: bool) -> str:
        """What new tokens settle.

        Args:
            tokens: in their order, the stop token among them.
            ended: nothing follows.
        """
        if not self._is_over:
            self._tokens += itertools.takewhile(lambda token: token != self._stop, tokens)
            self._is_over = self._stop in tokens
        ended = ended or self._is_over
        text = self._held + self._settled(ended)
        if self.stopped:
            return ""
        piece = _until(text, self._endings)
        self.stopped = len(piece) < len(text)
        self._held = ""
        if not (ended or self.stopped):
            kept = len(text) - max((_overlap(text, e) for e in self._endings), default=0)
            piece, self._held = text[:kept], text[kept:]
        return piece

    def _settled(self, ended: bool) -> str:
        """What was not given yet of the text that no later token changes."""
        text = self._decoded(self._from)
        whole = text if ended else text.rstrip(_HALF_A_CHARACTER)
        new = whole[self._given :]
        self._given = max(self._given, len(whole))
        # Behind tokens without a text (special ones) the next would be decoded as if it came first.
        if self._moves and len(whole) == len(text) and (after := self._decoded(self._read)):
            self._from, self._read = self._read, len(self._tokens)
            self._given = len(after)
        return new

    def _decoded(self, start: int) -> str:
        return str(self._tokenizer.decode(self._tokens[start:], skip_special_tokens=True))


def _until(text: str, endings: Sequence[str]) -> str:
    for ending in endings:
        text = text.partition(ending)[0]
    return text


def _overlap(text: str, ending: str) -> int:
    """How many characters at the end of the text are the beginning of the ending."""
    return next((n for n in range(len(ending) - 1, 0, -1) if text.endswith(ending[:n])), 0)
