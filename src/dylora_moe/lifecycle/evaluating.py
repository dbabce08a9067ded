"""Scores any rows with the pool: loss, checked answers, and where the router sent them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dylora_moe.lifecycle.answering import Sampling, answer
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.records import BASE_NAME, Example
from dylora_moe.routing.routing import Routing
from dylora_moe.scoring.checks import score
from dylora_moe.training.measure import answer_losses, row_routing


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How the pool does on some rows.

    Attributes:
        loss: token-mean loss of the answers, routed or under the pinned expert.
        accuracy: mean score of generated answers by their check; None where none were generated.
        rows: how many rows.
        to: share of the rows whose largest weight went to each expert (by alias), or to the base.
        pinned_loss: the loss under the expert named in `right`; None where none was named.
    """

    loss: float
    accuracy: float | None
    rows: int
    to: Mapping[str, float]
    pinned_loss: float | None = None


def evaluate(
    live: LivePool,
    examples: Sequence[Example],
    *,
    generate: bool = True,
    expert: str | None = None,
    right: str | None = None,
    max_new_tokens: int = 256,
) -> Evaluation:
    """Scores rows.

    Args:
        expert: pin this expert (alias or id), or `base`, instead of routing.
        right: measure this expert's loss beside, as what the router should have chosen.

    Raises:
        PoolError: no such expert.
        DataError: a row longer than the context.
    """
    rows = live.encode(examples)
    pinned = expert
    if expert not in (None, BASE_NAME):
        pinned = live.version(str(expert)).expert_id
    routing = row_routing(live.model, rows)
    by_row = pinned is None and not live.model.passes.per_token
    losses = answer_losses(live.model, rows, expert=pinned, gates=routing if by_row else None)
    beside = None
    if right is not None:
        beside = answer_losses(live.model, rows, expert=live.version(right).expert_id).mean
    accuracy = None
    with_prompt = [example for example in examples if len(example.turns) > 1]
    if generate and with_prompt:
        longest = max(rows.targets) + 8
        answers = answer(
            live,
            [example.turns[:-1] for example in with_prompt],
            expert=expert,
            sampling=Sampling(max_new_tokens=min(max_new_tokens, longest)),
        )
        scores = [
            score(e.check, a.text, e.completion, e.tests)
            for e, a in zip(with_prompt, answers, strict=True)
        ]
        accuracy = sum(scores) / len(scores)
    shares = shares_of(live, routing) if pinned is None else {str(expert): 1.0}
    return Evaluation(losses.mean, accuracy, len(examples), shares, beside)


def shares_of(live: LivePool, routing: Routing) -> dict[str, float]:
    """Share of inputs by the expert of their largest weight, largest share first."""
    counts: dict[str, int] = {}
    for weights, nobody in zip(routing.weights.tolist(), routing.to_none.tolist(), strict=True):
        best = max(range(len(weights)), key=weights.__getitem__, default=0)
        name = BASE_NAME if nobody else live.alias(routing.experts[best])
        counts[name] = counts.get(name, 0) + 1
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda pair: -pair[1])
    return {name: count / total for name, count in ranked}
