"""The two forms of an answer, `/v1/chat/completions` and `/v1/completions`.

Pure: each says how a choice looks, whole and in pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from dylora_moe.serving.engine.requests import Finished, Logprobs, Piece
from dylora_moe.serving.http.answers import Whole
from dylora_moe.serving.http.documents import chat_logprobs, completion_logprobs


class Form(Protocol):
    """How choices look.

    Attributes:
        prefix: of an answer's id.
        whole_object, chunk_object: what OpenAI calls the documents.
    """

    prefix: str
    whole_object: str
    chunk_object: str

    def whole(self, index: int, answer: Whole) -> dict[str, Any]:
        """A choice that is complete."""
        ...

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a stream says of a choice before there is any of its text."""
        ...

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """What one step added to it."""
        ...

    def closing(self, index: int, end: Finished) -> dict[str, Any]:
        """Its end in a stream."""
        ...


class ChatForm:
    """Messages.

    Args:
        logprobs: whether they were asked for.
    """

    prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, logprobs: bool) -> None:
        self._logprobs = logprobs

    def whole(self, index: int, answer: Whole) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._shown(answer.logprobs),
            "finish_reason": answer.end.reason if answer.end else None,
        }

    def opening(self, index: int) -> dict[str, Any] | None:
        return self._delta(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        return self._delta(index, {"content": piece.text}, self._shown(piece.logprobs))

    def closing(self, index: int, end: Finished) -> dict[str, Any]:
        return {**self._delta(index, {}), "finish_reason": end.reason}

    def _delta(self, index: int, delta: dict[str, Any], logprobs: Any = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _shown(self, found: Sequence[Logprobs]) -> dict[str, Any] | None:
        return chat_logprobs(found) if self._logprobs else None


class CompletionForm:
    """Plain text.

    Args:
        logprobs: whether they were asked for.
        echoed: the prompt of each choice, where it stands before the answer; else nothing.
    """

    prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, logprobs: bool, echoed: Sequence[str] | None) -> None:
        self._logprobs, self._echoed = logprobs, echoed
        self._written: dict[int, int] = {}

    def whole(self, index: int, answer: Whole) -> dict[str, Any]:
        before = self._echoed[index] if self._echoed else ""
        reason = answer.end.reason if answer.end else None
        shown = completion_logprobs(answer.logprobs) if self._logprobs else None
        return self._choice(index, before + answer.text, shown, reason)

    def opening(self, index: int) -> dict[str, Any] | None:
        return self._choice(index, self._echoed[index]) if self._echoed else None

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        offset = self._written.get(index, 0)
        self._written[index] = offset + sum(len(each.chosen.text) for each in piece.logprobs)
        shown = completion_logprobs(piece.logprobs, offset) if self._logprobs else None
        return self._choice(index, piece.text, shown)

    def closing(self, index: int, end: Finished) -> dict[str, Any]:
        return self._choice(index, "", None, end.reason)

    def _choice(
        self, index: int, text: str, logprobs: Any = None, reason: str | None = None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
