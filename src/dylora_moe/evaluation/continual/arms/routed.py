"""The test rows under a pool as it answers now: each by the experts it is routed to.

Knows a live pool and rows; knows nothing of what the pool learned, or when. A row whose experts
and weights are those of an earlier stage is taken over from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dylora_moe.errors import DataError
from dylora_moe.evaluation.continual.answers import (
    Questions,
    answer_rows,
    decisions,
    text_losses,
)
from dylora_moe.evaluation.continual.results import RowResult, TextLoss
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.records import Example
from dylora_moe.routing.routing import Routing
from dylora_moe.training.measure import answer_losses, row_routing

_Weights = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Scored:
    """The test rows at one stage.

    Attributes:
        rows: those asked for, in their order.
        none: the router's probability that a row is for no expert.
        in_use: parameters of the experts that answered a row, the mean.
    """

    rows: tuple[RowResult, ...]
    none: tuple[float, ...]
    in_use: float


class Asked:
    """Answers the same rows again and again, as little of it anew as can be.

    Args:
        live: the pool; its tap never changes, so the rows are read once.
        rows: with their true skills.

    Raises:
        DataError: a row without a prompt.
    """

    def __init__(self, live: LivePool, rows: Sequence[tuple[str, Example]]) -> None:
        for skill, row in rows:
            if len(row.turns) < 2:
                raise DataError(
                    f"{skill}: the test row {row.key[:8]} has no prompt to answer; bring rows with "
                    "a prompt and a completion"
                )
        self._live, self._asked = live, rows
        self._questions: Questions | None = None
        self._known: dict[tuple[str, _Weights], RowResult] = {}

    def score(
        self, owners: Mapping[str, str], only: Sequence[int] | None = None, *, whole: bool = True
    ) -> Scored:
        """Rows as the pool answers them now.

        Args:
            owners: the true skill of each expert, by id.
            only: these alone, by index; all where None.
            whole: as of `answer_rows`.
        """
        live = self._live
        if self._questions is None:
            examples = tuple(row for _, row in self._asked)
            skills = tuple(skill for skill, _ in self._asked)
            self._questions = Questions(skills, examples, live.encode(examples))
        routing = row_routing(live.model, self._questions.rows)
        weights = _weights(live, routing)
        chosen = list(range(len(weights)) if only is None else only)
        places = [(self._questions.examples[row].key, weights[row]) for row in range(len(weights))]
        known = {at for at, row in self._known.items() if not whole or row.f1 is not None}
        new = [row for row in chosen if places[row] not in known]
        gates = None if live.model.passes.per_token else routing
        found = answer_rows(live.model, self._questions, gates, only=new, whole=whole)
        self._known.update(zip((places[row] for row in new), found, strict=True))
        decided = decisions(routing, owners)
        rows = tuple(
            replace(self._known[places[row]], expert=decided[row][0], confidence=decided[row][1])
            for row in chosen
        )
        sizes = {live.ref(name): parameters_of(live, name) for name in live.versions}
        used = [sum(sizes[ref] for ref, _ in weights[row]) for row in chosen]
        shares = routing.none.tolist()
        none = tuple(round(shares[row], 4) for row in chosen)
        return Scored(rows, none, sum(used) / len(used))


def neutral_losses(live: LivePool, examples: Sequence[Example]) -> tuple[TextLoss, ...]:
    """The losses of the pool's own choice on rows of no skill."""
    if not examples:
        return ()
    rows = live.encode(examples)
    gates = None if live.model.passes.per_token else row_routing(live.model, rows)
    return text_losses(rows, answer_losses(live.model, rows, gates=gates))


def parameters_of(live: LivePool, expert: str) -> int:
    """Numbers in an expert's adapter."""
    return sum(tensor.numel() for tensor in live.experts.state(expert).values())


def _weights(live: LivePool, routing: Routing) -> list[_Weights]:
    """The experts of each row, with their versions."""
    refs = [live.ref(expert) for expert in routing.experts]
    return [
        tuple(
            (ref, round(weight, 6))
            for ref, weight in sorted(zip(refs, row, strict=True))
            if weight > 1e-6
        )
        for row in routing.weights.tolist()
    ]
