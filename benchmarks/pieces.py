"""What becomes of a skill that comes in pieces, by how each further piece is learned.

    python benchmarks/pieces.py --data path/to/skills --runs runs.jsonl

`--data` is a folder with `<skill>/{train,test}.jsonl`. A skill's rows come in pieces of `PIECE`, as
they do to a pool: the first makes an expert, each further one trains it on beside stored rows, and
what the training came to is kept where it is better on the validation rows of all pieces. No
neighbour takes part. Measured on test rows after the last piece. About a minute and a half each.
"""

from __future__ import annotations

import functools
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from ablations_table import AS_IT_IS, Run
from study import Study, cached, drawn, main
from torch import Tensor

from dylora_moe.build.recipe import make_recipe
from dylora_moe.config import LearnSettings
from dylora_moe.experts.manager import ExpertManager
from dylora_moe.foundation.base import DEFAULT_BASE, Base, load_base
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.records import Example
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.text.reading import read_examples
from dylora_moe.text.split import split
from dylora_moe.training.expert import train_expert
from dylora_moe.training.measure import answer_losses
from dylora_moe.training.outcome import TrainingOutcome
from dylora_moe.training.phases import Phase
from dylora_moe.training.reporters import JsonlReporter
from dylora_moe.tuning.trials import exact_answers

PIECE = 60
"""Rows of a piece: those of a batch of the bench's cpu preset."""
EXPERT = "expert_1"
RECIPE = make_recipe(LearnSettings())

State = dict[str, Tensor]
Begun = tuple[State, int, float, float]
"""An expert of first rows; tokens, seconds and operations that it took."""


@dataclass(frozen=True)
class Way:
    """How a further piece is learned.

    Attributes:
        rate: times that of more data.
        replay: stored rows beside each new one.
        anew: an expert of nothing learns all rows so far as a new one does.
        keep: the weights that are kept of those before and after: of the best epoch if they are
            `better`, the `last` in any case, or the `mean` of the old and the last.
    """

    rate: float = 1.0
    replay: float = RECIPE.replay
    anew: bool = False
    keep: str = "better"


WAYS: Mapping[str, Way | None] = {
    AS_IT_IS: Way(),
    "all at once": None,
    "rate x 0.5": Way(rate=0.5),
    "rate x 2": Way(rate=2.0),
    "as many old rows as new": Way(replay=1.0),
    "all old rows": Way(replay=1e9),
    "anew": Way(anew=True),
    "last weights": Way(keep="last"),
    "mean of old and last": Way(keep="mean"),
}


class Learner:
    """One expert on a base, and the rows that it has learned.

    Args:
        base: with no adapters on it.
    """

    def __init__(self, base: Base) -> None:
        self.experts = ExpertManager(base.model, base.anatomy, base_name=base.name)
        self.model = DyLoRAMoE(base, DynamicHybridRouter(base.anatomy.d_features), self.experts)
        self._begun: dict[tuple[str, ...], Begun] = {}

    def begin(self, rows: Sequence[Example], seed: int) -> None:
        """Makes the expert of the first rows, or of all; the same rows are learned once."""
        if self.experts.names:
            self.experts.remove(EXPERT)
        self.seed = seed
        self.stored, self.watched = list[Example](), list[Example]()
        self.tokens, self.seconds, self.operations = 0, 0.0, 0.0
        own = self._take(rows)
        self._new()
        mark = (str(seed), *(row.key for row in rows))
        if mark in self._begun:
            state, self.tokens, self.seconds, self.operations = self._begun[mark]
            self.experts.restore(EXPERT, state)
            return
        self._train(own, RECIPE.new_expert)
        state = self.experts.state(EXPERT)
        self._begun[mark] = state, self.tokens, self.seconds, self.operations

    def more(self, rows: Sequence[Example], way: Way) -> None:
        """Learns a further piece."""
        old = list(self.stored)
        own = self._take(rows)
        if way.anew:
            self.experts.remove(EXPERT)
            self._new()
            self._train([*old, *own], RECIPE.new_expert)
            return
        count = min(round(way.replay * len(own)), len(old))
        rehearsed = random.Random(self.seed).sample(old, count)
        before, last = self.experts.state(EXPERT), State()
        loss = self._loss(self.watched)
        phases = [replace(phase, learning_rate=phase.learning_rate * way.rate)
                  for phase in RECIPE.more_data]  # fmt: skip
        if way.keep != "better":
            phases = [replace(phase, patience=1000) for phase in phases]
        outcome = self._train(
            [*own, *rehearsed], phases, lambda: last.update(self.experts.state(EXPERT))
        )
        if way.keep == "last":
            self.experts.restore(EXPERT, last)
        elif way.keep == "mean":
            mean = {name: (value + last[name]) / 2 for name, value in before.items()}
            self.experts.restore(EXPERT, mean)
        elif not outcome.best_loss < loss * (1 - RECIPE.better):
            self.experts.restore(EXPERT, before)

    def _take(self, rows: Sequence[Example]) -> list[Example]:
        own, watched = split(rows, RECIPE.validation_fraction)
        self.stored += own
        self.watched += watched
        return own

    def _new(self) -> None:
        shape = RECIPE.shape
        self.experts.create_expert(
            EXPERT, rank=shape.rank, alpha=shape.alpha, dropout=shape.dropout,
            targets=shape.targets, seed=self.seed,
        )  # fmt: skip

    def _loss(self, rows: Sequence[Example]) -> float:
        return answer_losses(self.model, cached(self.model.base, rows), expert=EXPERT).mean

    def _train(
        self,
        rows: Sequence[Example],
        phases: Sequence[Phase],
        at_end: Callable[[], object] | None = None,
    ) -> TrainingOutcome:
        def told(done: int, steps: int, _: object) -> None:
            if done == steps and at_end is not None:
                at_end()

        start = time.perf_counter()
        with (
            tempfile.TemporaryDirectory() as folder,
            closing(JsonlReporter(Path(folder))) as reporter,
        ):
            outcome = train_expert(
                self.model,
                EXPERT,
                train=cached(self.model.base, rows),
                evaluation={"own": cached(self.model.base, self.watched)},
                target="own",
                phases=[
                    # Of the skill alone: what a pool's others would add is not in question here.
                    replace(phase, collaboration=(0.0, 0.0), train_gate=False)
                    for phase in phases
                ],
                folder=Path(folder),
                reporter=reporter,
                seed=self.seed,
                on_progress=told,
            )
        self.tokens += outcome.tokens
        self.operations += outcome.flops
        self.seconds += time.perf_counter() - start
        return outcome


@functools.cache
def _learner() -> Learner:
    return Learner(load_base(DEFAULT_BASE))


def run(folder: Path, name: str, rows: int, test: int, seed: int) -> Run:
    """Teaches one skill's rows in pieces, or all at once."""
    way, given, learner = WAYS[name], drawn(folder, rows, seed), _learner()
    if way is None:
        learner.begin(given, seed)
    else:
        learner.begin(given[:PIECE], seed)
        for start in range(PIECE, len(given), PIECE):
            learner.more(given[start : start + PIECE], way)
    asked = cached(learner.model.base, list(read_examples(folder / "test.jsonl"))[:test])
    losses = answer_losses(learner.model, asked, expert=EXPERT, openings=True)
    return Run(
        name, folder.name, rows, seed, losses.mean,
        statistics.fmean(exact_answers(asked, losses)), learner.tokens, learner.seconds, test,
        operations=learner.operations,
    )  # fmt: skip


STUDY = Study(
    name="pieces",
    title="A skill that comes in pieces",
    compared=f"one skill in pieces of {PIECE} rows, each further one learned otherwise and by "
    "default, the same rows in the same order",
    variants=tuple(WAYS),
    rows=160,
    run=run,
)

if __name__ == "__main__":
    main(STUDY)
