"""One request in the running batch: what was written of it, by whom, and what it is told.

Knows one row's tokens, text and numbers; knows nothing of the others or of the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dylora_moe.foundation.tap import Prefix
from dylora_moe.lifecycle.text_pieces import RowText
from dylora_moe.records import BASE_NAME
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.serving.engine.requests import (
    Finished,
    Logprobs,
    OnEvent,
    Piece,
    Provenance,
    Reason,
    Request,
    TokenLogprob,
)
from dylora_moe.serving.engine.sampling import Draws
from dylora_moe.serving.engine.trials import Taken
from dylora_moe.serving.engine.versions import Ref


@dataclass(eq=False)
class Asked:
    """A request that was taken on; its ticket.

    Attributes:
        prompt: its token ids.
        most: tokens that are written at most, as the context allows.
        pinned: id of the one expert that is to answer; None where the router decides, or for the
            base.
        version: of that expert; the one in service where None.
        given: weights of versions in place of the router's.
        routed: whether the router decides.
        arrived: moment of arrival (`time.monotonic`).
        cancelled: nobody wants it any more.
    """

    request: Request
    prompt: tuple[int, ...]
    most: int
    pinned: str | None
    version: int | None
    given: Mapping[Ref, float] | None
    routed: bool
    on_event: OnEvent
    arrived: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    def cancel(self) -> None:
        """Nobody wants it any more."""
        self.cancelled = True

    @property
    def tokens(self) -> int:
        """That it may come to hold in the cache."""
        return len(self.prompt) + self.most

    def overdue(self, now: float) -> Reason | None:
        """Why it is to end though it is not done; None where it goes on."""
        if self.cancelled:
            return "cancelled"
        seconds = self.request.seconds
        return "deadline" if seconds is not None and now - self.arrived > seconds else None

    def end(self, reason: Reason, message: str = "") -> None:
        """Tells that it ended before it was begun."""
        waited = time.monotonic() - self.arrived
        self.on_event(
            Finished(
                reason, len(self.prompt), 0, None, message=message, waited=waited, seconds=waited
            )
        )


class Row:
    """A request while it is answered.

    Args:
        asked: the request.
        tokenizer: the base's.
        stop_token: ends every answer.
        device: of the logits.
        revision: of the pool, when it was begun.
        versions: of each expert, as this request takes them.
        alias: what people call an expert, by its id.
        router: of that revision.

    Raises:
        KeyError: the expert that is to answer is none of these.

    Attributes:
        weights: of each version that takes part; set when it is routed.
        last: the token that the next step reads.
        length: tokens in the cache.
        by_token: whether the router decides for each of its tokens.
        prefix: what its next decision goes on from then.
        novel: whether the screen calls its prompt strange.
    """

    def __init__(
        self,
        asked: Asked,
        tokenizer: PreTrainedTokenizerBase,
        stop_token: int,
        device: torch.device,
        *,
        revision: int,
        versions: Taken,
        alias: Callable[[str], str],
        router: DynamicHybridRouter,
    ) -> None:
        request = asked.request
        self.asked, self.versions, self.router = asked, versions, router
        self.weights: dict[Ref, float] = dict(asked.given or {})
        if asked.pinned is not None:
            self.weights = {(asked.pinned, asked.version or versions[asked.pinned]): 1.0}
        self.last, self.length = 0, len(asked.prompt)
        self.by_token = asked.routed and router.granularity == "token"
        self.prefix: Prefix | None = None
        self.none = 0.0 if self.weights else 1.0
        self.entropy: float | None = None
        self.novel: bool | None = None
        self._alias = alias
        self._tokenizer, self._stop, self._revision = tokenizer, stop_token, revision
        self._text = RowText(tokenizer, request.stop)
        seed = request.seed
        if seed is None and request.temperature > 0:
            seed = int(torch.randint(2**31, ()))
        self._seed = seed if request.temperature > 0 else None
        self.draws = Draws(request.temperature, request.top_p, request.top_k, seed or 0, device)
        self._written = 0
        self._sums: dict[Ref, float] = {}
        self._decisions = 0
        self._begun = time.monotonic()
        self._first: float | None = None

    @property
    def begun(self) -> bool:
        """Whether anything was told of its answer."""
        return self._written > 0

    @property
    def took_part(self) -> set[Ref]:
        """Versions that had a weight in the answer so far."""
        return set(self._sums) if self.asked.routed else set(self.weights)

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities are told."""
        return self.asked.request.top_logprobs is not None

    def routed_by(self, weights: Mapping[str, float], none: float, entropy: float) -> None:
        """Takes a decision of the router: weights by expert id."""
        self.weights = {(name, self.versions[name]): w for name, w in weights.items() if w > 0}
        self._decisions += 1
        for ref, weight in self.weights.items():
            self._sums[ref] = self._sums.get(ref, 0.0) + weight
        # Where it decides for each token, the means over all of them are told.
        share = 1 / self._decisions
        self.none += (none - self.none) * share
        before = 0.0 if self.entropy is None else self.entropy
        self.entropy = before + (entropy - before) * share

    def take(self, token: int, logprobs: Float[Tensor, " vocabulary"] | None) -> Reason | None:
        """Takes the next token and tells of it; why the answer ends with it, or None.

        Args:
            logprobs: of every token that could have been written; None where nobody asked.
        """
        self.last, self._written = token, self._written + 1
        if self._first is None:
            self._first = time.monotonic() - self.asked.arrived
        ended = token == self._stop
        full = self._written >= self.asked.most
        piece = self._text.take([token], ended or full)
        told: tuple[Logprobs, ...] = ()
        if logprobs is not None and not ended:
            told = (self._told(token, logprobs),)
        self.asked.on_event(Piece(piece, 1, told))
        if ended or self._text.stopped:
            return "stop"
        return "length" if full else None

    def end(self, reason: Reason, message: str = "") -> None:
        """Tells that it ended."""
        now = time.monotonic()
        self.asked.on_event(
            Finished(
                reason,
                len(self.asked.prompt),
                self._written,
                self.provenance(),
                message=message,
                waited=self._begun - self.asked.arrived,
                first=self._first,
                seconds=now - self.asked.arrived,
            )
        )

    def provenance(self) -> Provenance:
        """Where the answer came from so far."""
        total = self._decisions or 1
        sums = self._sums if self.asked.routed else dict(self.weights)
        shares = {ref: sums[ref] / (total if self.asked.routed else 1) for ref in sums}
        best = max(shares, key=lambda ref: shares[ref], default=None)
        return Provenance(
            revision=self._revision,
            expert=BASE_NAME if best is None else self._alias(best[0]),
            expert_id=None if best is None else best[0],
            version=None if best is None else best[1],
            weights={f"{self._alias(one)}@{version}": w for (one, version), w in shares.items()},
            none=self.none,
            routed=self.asked.routed,
            entropy=self.entropy,
            canary=any(map(self.versions.is_on_trial, shares)),
            novel=self.novel,
            seed=self._seed,
        )

    def _told(self, token: int, logprobs: Tensor) -> Logprobs:
        count = self.asked.request.top_logprobs or 0
        values, tokens = logprobs.topk(min(count, len(logprobs)))
        top = zip(tokens.tolist(), values.tolist(), strict=True)
        return Logprobs(
            self._named(token, float(logprobs[token])),
            tuple(self._named(*each) for each in top),
        )

    def _named(self, token: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(token, str(self._tokenizer.decode([token])), logprob)
