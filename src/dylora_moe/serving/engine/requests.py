"""What is asked of the engine, and what it tells on the way.

Knows plain values; knows no model, no threads and no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dylora_moe.errors import ConfigError
from dylora_moe.records import Turn

Reason = Literal["stop", "length", "cancelled", "deadline", "error"]
"""Why an answer ended: its stop token or a text that stops it; its number of tokens or the context;
nobody wants it any more; it took too long; something went wrong."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Who is to answer.

    Attributes:
        expert: alias or id of an expert, `base`, or None where the router decides.
        version: of that expert; None for the one in service (its canary included).
        weights: of each expert (alias or id) in this version, in place of the router's; None where
            nobody says.
    """

    expert: str | None = None
    version: int | None = None
    weights: Mapping[tuple[str, int], float] | None = None

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        given = self.weights.values()
        # What routers give sums to one and a rounding error at the most.
        if self.expert is not None or min(given, default=0) <= 0 or sum(given) > 1.001:
            raise ConfigError(
                "weights take the place of the router's: give some above 0, of 1 at the most "
                "together, and name no expert besides"
            )


@dataclass(frozen=True, slots=True)
class Request:
    """One answer that is asked for.

    Attributes:
        prompt: a prompt, turns of a conversation, or token ids as they are.
        choice: who is to answer.
        max_tokens: of the answer; as many as the context has room for where None.
        temperature: 0 is greedy.
        top_p: share of the probability that is drawn from, the likeliest tokens first.
        top_k: tokens that are drawn from; 0: all.
        seed: of this row's draws, whatever else is in its batch; drawn where None.
        stop: texts that end the answer and are not part of it.
        top_logprobs: how many alternatives are told with each token; None: no log-probabilities.
        seconds: from its arrival until it is given up; None: as long as it takes.
        id: chosen by whoever asks; goes into logs and provenance.
        screened: whether the prompt is held against the skills, and may be kept in the inbox.
    """

    prompt: str | Sequence[Turn] | Sequence[int]
    choice: Choice = Choice()
    max_tokens: int | None = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    seconds: float | None = None
    id: str = ""
    screened: bool = True

    @property
    def turns(self) -> tuple[Turn, ...]:
        """What was asked, as turns; none where it came as token ids."""
        if isinstance(self.prompt, str):
            return (Turn("user", self.prompt),)
        return tuple(one for one in self.prompt if isinstance(one, Turn))

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}; give at least 1")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ConfigError(
                f"temperature {self.temperature}, top_p {self.top_p}, top_k {self.top_k}: give a "
                "temperature of 0 or more, top_p above 0 and at most 1, top_k of 0 (off) or more"
            )
        if any(not text for text in self.stop):
            raise ConfigError("an empty text in stop would end every answer; leave it out")
        if self.top_logprobs is not None and self.top_logprobs < 0:
            raise ConfigError(f"top_logprobs is {self.top_logprobs}; give 0 or more")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of a token by the model itself, before temperature and top_p.

    Attributes:
        token: its id.
        text: of it alone; half a character is the replacement character.
        logprob: natural logarithm.
    """

    token: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of one written token, with the likeliest that could have been written."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step added to an answer.

    Attributes:
        text: settled by this step; may be empty (half a character, what may become a stop text).
            All pieces together are the answer.
        tokens: new tokens, the stop token among them.
        logprobs: of the new tokens that are part of the answer; empty where none were asked for.
    """

    text: str
    tokens: int
    logprobs: tuple[Logprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an answer came from: enough to ask for it again.

    Attributes:
        revision: of the pool when the answer began.
        expert: alias of the expert with the largest weight, or `base`.
        expert_id: its id; None for the base.
        version: of it; None for the base.
        weights: of every expert that took part, as `alias@version`.
        none: the router's probability that no expert is meant; 1 or 0 where it was not asked.
        routed: whether the router decided.
        entropy: of the routing, nats; None where the router was not asked.
        canary: whether the version was one on trial.
        novel: whether the screen calls the prompt strange to every skill; None where unscreened.
        seed: of the draws; None for greedy.
    """

    revision: int
    expert: str
    expert_id: str | None
    version: int | None
    weights: Mapping[str, float] = field(default_factory=dict)
    none: float = 0.0
    routed: bool = False
    entropy: float | None = None
    canary: bool = False
    novel: bool | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer; told exactly once, after its pieces.

    Attributes:
        reason: why.
        prompt_tokens: of the prompt.
        tokens: written, the stop token among them.
        provenance: None where it ended before it was begun.
        message: one line, where something went wrong; of no use to a stranger, so for logs.
        waited: seconds in the queue.
        first: seconds from arrival to the first token; None where none came.
        seconds: from arrival to this.
    """

    reason: Reason
    prompt_tokens: int
    tokens: int
    provenance: Provenance | None
    message: str = ""
    waited: float = 0.0
    first: float | None = None
    seconds: float = 0.0


OnEvent = Callable[[Piece | Finished], None]
"""Called in the engine's thread; must neither wait nor raise."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the engine is doing.

    Attributes:
        running, waiting: requests.
        revision: of the pool that new requests are answered by.
        ready: whether it takes requests: loaded, not broken, not being stopped.
        message: why not.
        cached_tokens: that the KV cache holds.
        pace: seconds after which a place in the queue becomes free.
    """

    running: int
    waiting: int
    revision: int
    ready: bool
    message: str = ""
    cached_tokens: int = 0
    pace: float = 1.0
