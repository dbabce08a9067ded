"""From what a client sent to what the engine is asked.

Pure: bodies and limits in, requests of the engine out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dylora_moe.errors import ConfigError
from dylora_moe.records import BASE_NAME, Role, Turn
from dylora_moe.serving.engine.requests import Choice, Request
from dylora_moe.serving.http.bodies import (
    ChatBody,
    CompletionBody,
    Message,
    SampledBody,
    check_supported,
    unsupported,
)
from dylora_moe.serving.http.errors import bad

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
COMPLETION_TOKENS = 16
"""OpenAI's number of tokens where a completion says none."""


@dataclass(frozen=True)
class Asking:
    """What a server goes by in reading requests.

    Attributes:
        name: of the pool, which lets the router choose.
        temperature: where a request says none.
        max_tokens, choices, messages, stop, top_logprobs, seconds: the limits of one request.
    """

    name: str
    temperature: float
    max_tokens: int
    choices: int
    messages: int
    stop: int
    top_logprobs: int
    seconds: float

    def chat(self, body: ChatBody, number: str) -> list[Request]:
        """The requests of a conversation, one a choice.

        Args:
            number: id of the HTTP request.

        Raises:
            ApiError: what is not supported, or beyond a limit.
        """
        check_supported(body)
        if len(body.messages) > self.messages:
            raise bad(f"messages: at most {self.messages}", "messages")
        wanted = body.max_completion_tokens or body.max_tokens
        if body.max_tokens and body.max_completion_tokens not in (None, body.max_tokens):
            message = "max_tokens and max_completion_tokens differ; give one of them"
            raise bad(message, "max_completion_tokens")
        if body.top_logprobs is not None and not body.logprobs:
            raise bad("top_logprobs: needs logprobs to be true", "top_logprobs")
        shown = (body.top_logprobs or 0) if body.logprobs else None
        turns = [_turn(message, index) for index, message in enumerate(body.messages)]
        given = self._sampling(body, wanted or self.max_tokens, shown)
        return self._copies([turns], body, given, number)

    def completions(self, body: CompletionBody, number: str) -> list[Request]:
        """The requests of a completion: each prompt's choices, prompt after prompt; as `chat`."""
        check_supported(body)
        prompts = prompts_of(body)
        if body.echo and (body.logprobs is not None or not isinstance(prompts[0], str)):
            raise unsupported("echo", "is not supported with logprobs or token ids")
        tokens = body.max_tokens or min(COMPLETION_TOKENS, self.max_tokens)
        given = self._sampling(body, tokens, body.logprobs)
        return self._copies(prompts, body, given, number)

    def _sampling(self, body: SampledBody, tokens: int, shown: int | None) -> dict[str, Any]:
        stop = [body.stop] if isinstance(body.stop, str) else list(body.stop or ())
        if len(stop) > self.stop:
            raise bad(f"stop: at most {self.stop} texts", "stop")
        if tokens > self.max_tokens:
            raise bad(f"max_tokens: at most {self.max_tokens}", "max_tokens")
        if shown is not None and shown > self.top_logprobs:
            raise bad(f"logprobs: at most {self.top_logprobs} for each token", "top_logprobs")
        return {
            "choice": self._choice(body),
            "max_tokens": tokens,
            "temperature": self.temperature if body.temperature is None else body.temperature,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "top_k": body.top_k or 0,
            "stop": tuple(stop),
            "top_logprobs": shown,
            "seconds": self.seconds,
        }

    def _choice(self, body: SampledBody) -> Choice:
        choice = choice_of(body.model, self.name)
        if body.weights is None:
            return choice
        if choice != Choice():
            message = f"weights: are of a mixture; set model to {self.name}, or leave them out"
            raise bad(message, "weights")
        given: dict[tuple[str, int], float] = {}
        for name, weight in body.weights.items():
            one = choice_of(name, self.name)
            if one.expert is None or one.version is None:
                raise bad(f"weights: {name} names no version; write alias@version", "weights")
            given[one.expert, one.version] = weight
        try:
            return Choice(weights=given)
        except ConfigError as error:
            raise bad(f"weights: {error}", "weights") from None

    def _copies(
        self, prompts: Sequence[Any], body: SampledBody, given: dict[str, Any], number: str
    ) -> list[Request]:
        copies = body.n or 1
        if copies * len(prompts) > self.choices:
            raise bad(f"n: at most {self.choices} answers of one request", "n")
        return [
            Request(
                prompt,
                seed=seed_of(body.seed, index * copies + copy),
                id=f"{number}-{index * copies + copy}",
                # It is one prompt, however many answers are asked for.
                screened=copy == 0,
                **given,
            )
            for index, prompt in enumerate(prompts)
            for copy in range(copies)
        ]


def prompts_of(body: CompletionBody) -> list[str] | list[list[int]]:
    """The prompts of a completion, which has several forms for them."""
    given: Any = body.prompt
    several = isinstance(given, list) and not isinstance(given[0], int)
    prompts: list[Any] = given if several else [given]
    return prompts


def choice_of(model: str, pool: str) -> Choice:
    """Who is meant: the pool's name lets the router choose, `alias@version` pins a version."""
    if model == pool:
        return Choice()
    alias, _, version = model.rpartition("@")
    # The base has no versions: nobody is called so.
    named = alias not in ("", BASE_NAME)
    if named and version.isascii() and version.isdigit() and len(version) < 10:
        return Choice(alias, int(version))
    return Choice(model)


def seed_of(seed: int | None, index: int) -> int | None:
    """The seed of one choice: the first one's is what was given, the others' derive from it.

    All are below 2**32, which every generator takes.
    """
    if seed is None or (index == 0 and 0 <= seed < 2**32):
        return seed
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def _turn(message: Message, index: int) -> Turn:
    place = f"messages.{index}"
    role = ROLES.get(message.role)
    if role is None or (message.model_extra or {}).get("tool_calls"):
        raise unsupported(place, "belongs to a tool, which is not supported")
    if message.content is None:
        raise bad(f"{place}.content: is missing", f"{place}.content", "missing_required_parameter")
    if isinstance(message.content, str):
        return Turn(role, message.content)
    strange = [part.type for part in message.content if part.type != "text" or part.text is None]
    if strange:
        raise unsupported(f"{place}.content", "has a part that is no text")
    return Turn(role, "".join(part.text or "" for part in message.content))
