"""A base's own chat template, rendered without the system prompt it may put in by itself.

Knows templates as text; masks and token ids are `template`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from dylora_moe.errors import DataError
from dylora_moe.records import Turn

_QUESTION = Turn("user", "How far is it?")
_ANSWER = Turn("assistant", "Two miles.")
_SYSTEM = Turn("system", "Mind the tide.")


def render(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, *, ask: bool = True) -> str:
    """The conversation as the template writes it, with nothing in it that the turns do not say.

    Args:
        turns: at least one.
        tokenizer: the base's.
        ask: end with the mark after which the assistant answers.

    Raises:
        DataError: the tokenizer has no chat template, or it refuses these turns.
    """
    text = _render(turns, tokenizer, ask)
    if turns[0].role == "system":
        return text
    injected = _injected(tokenizer, str(tokenizer.chat_template))
    # Some templates put in their system prompt only under conditions (tools, dates).
    if not injected.whole or not text.startswith(injected.whole):
        return text
    return injected.kept + text[len(injected.whole) :]


class _Injected:
    """What a template writes before the first user turn: `whole`, of which `kept` stays (the
    begin token). Both are empty where it puts in no system prompt."""

    def __init__(self, whole: str = "", kept: str = "") -> None:
        self.whole = whole
        self.kept = kept


@lru_cache(maxsize=8)
def _injected(tokenizer: PreTrainedTokenizerBase, template: str) -> _Injected:
    """Finds the system prompt a template adds by rendering three short conversations.

    The template's text is part of the key only: another template on the same tokenizer is
    examined anew.
    """
    bare = _render([_QUESTION], tokenizer, False)
    try:
        given = _render([_SYSTEM, _QUESTION], tokenizer, False)
    except DataError:
        return _Injected()  # a template that knows no system turn adds none
    if _is_cut_out_of(bare, given):
        return _Injected()
    once = _render([_QUESTION, _ANSWER], tokenizer, False)
    twice = _render([_QUESTION, _ANSWER, _QUESTION], tokenizer, False)
    user_turn = twice[len(once) :] if twice.startswith(once) else ""
    if not user_turn or not bare.endswith(user_turn):
        raise DataError(
            "the base's chat template puts in a system prompt that cannot be told from the rest; "
            "give a system prompt of your own or use the plain prompt format"
        )
    whole = bare[: -len(user_turn)]
    begin = str(tokenizer.bos_token or "")
    # SmolLM2 calls the mark of every turn its begin token: that one belongs to the turn.
    keeps_begin = begin and whole.startswith(begin) and not user_turn.startswith(begin)
    return _Injected(whole, begin if keeps_begin else "")


def _is_cut_out_of(text: str, longer: str) -> bool:
    """Whether removing one run of characters from `longer` gives `text`."""
    head = 0
    while head < min(len(text), len(longer)) and text[head] == longer[head]:
        head += 1
    return longer.endswith(text[head:]) and len(longer) >= len(text)


def _render(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, ask: bool) -> str:
    if not tokenizer.chat_template:
        raise DataError(
            "the base's tokenizer has no chat template; use the plain prompt format "
            "(dylora init POOL --format plain) or a base tuned for chat"
        )
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        )
    except TemplateError as error:
        roles = ", ".join(turn.role for turn in turns)
        raise DataError(
            f"the base's chat template refuses these turns ({roles}): {error}; "
            "mend their order or use the plain prompt format"
        ) from None
