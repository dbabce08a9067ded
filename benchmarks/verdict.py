"""What a verdict costs beside the passes that it cannot do without.

python benchmarks/verdict.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
import workload
from harness import Benchmark, Check, Options, Row, Samples, main
from torch import Tensor

from dylora_moe.foundation.base import Base
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.lifecycle.judgement import Judgement, judge
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.observation import Observation
from dylora_moe.lifecycle.scorecard import Scorecard
from dylora_moe.records import BASE_NAME
from dylora_moe.skills.classifier import ClassifierTwoSample
from dylora_moe.skills.library import SkillLibrary
from dylora_moe.skills.separability import FoldScores
from dylora_moe.text.template import Encoded
from dylora_moe.training.measure import answer_losses
from dylora_moe.training.rows import Rows

ARRIVING = 64
SKILLS = 4
STORED = 205
"""Rows of each skill in the pool: 240 that arrived, less those that validate."""
PROMPT, ANSWER = 48, 32
"""Tokens of a row, as in the sample stream."""


@dataclass(frozen=True)
class Bench:
    """A pool of four experts and an arrival's rows."""

    live: LivePool
    encoded: tuple[Encoded, ...]

    def trunk(self) -> Rows:
        return Rows(self.encoded, TrunkCache(self.live.base, self.encoded))

    def judge(self, rows: Rows, *, both: bool = False) -> Judgement:
        """The verdict on rows; `both` scores everyone on the whole sample."""
        observation = SimpleNamespace(
            train=rows, all_features=rows.features, answer_tokens=sum(rows.targets)
        )
        return judge(
            self.live,
            Scorecard({}),
            cast(Observation, observation),
            ClassifierTwoSample(),
            both=both,
        )

    def changed(self) -> None:
        """After every arrival that is learned the library has changed; nothing is kept of it."""
        library = self.live.library
        library.put(library.skills[0])


def run(
    options: Options, what: Callable[[Bench, Rows], Any] | None, kind: int = SKILLS
) -> Mapping[str, Any]:
    """The trunk's forward over the arrival, and what is done with it then.

    Args:
        what: is timed.
        kind: of the rows; below `SKILLS`, those of a skill that is there.
    """
    bench = _bench(options, options.dtype, kind)
    seconds = []
    for turn in range(2 if options.toy else options.warmup + options.repeats):
        bench.changed()
        start = time.perf_counter()
        rows = bench.trunk()
        if what is not None:
            what(bench, rows)
        if turn >= (1 if options.toy else options.warmup):
            seconds.append(time.perf_counter() - start)
    return {"seconds": seconds}


def separate(bench: Bench, rows: Rows) -> None:
    ClassifierTwoSample().measure(rows.features, bench.live.library)


def score_twice(bench: Bench, rows: Rows) -> None:
    """The base's and one expert's answers."""
    for expert in (BASE_NAME, "expert_0"):
        answer_losses(bench.live.model, rows, expert=expert)


def decide(bench: Bench, rows: Rows) -> None:
    bench.judge(rows)


def score_glances(bench: Bench, rows: Rows) -> None:
    """The base's and two experts' answers on the rows of a glance."""
    for expert in (BASE_NAME, "expert_0", "expert_1"):
        answer_losses(bench.live.model, rows, expert=expert, only=range(0, len(rows), 4))


def checks(options: Options) -> Sequence[Check]:
    """The folds' scores are those of the primal form; a glance leads to the verdict of a look."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(90, 40, generator=generator) * 3 + 20
    sides, fold = (torch.arange(90) >= 50).long(), torch.arange(90) % 5
    found, expected = FoldScores(rows, sides, 10.0).scores(fold), _primal(rows, sides, fold, 10.0)
    difference = float((found - expected).abs().max() / expected.abs().max())
    others = []
    for kind in (0, SKILLS):
        bench = _bench(options, "fp32", kind)
        arrived = bench.trunk()
        glance, look = bench.judge(arrived), bench.judge(arrived, both=True)
        others.append(float(glance.verdict.name != look.verdict.name))
    return [
        Check("scores of left-out rows against the primal form, relative", difference, 1e-4),
        Check(
            "another verdict than where everyone is scored in full, of two arrivals (1 is yes)",
            max(others),
            0.5,
        ),
    ]


def rows(samples: Samples) -> Sequence[Row]:
    return [
        samples.ratio(
            "trunk and separability",
            "trunk",
            "separability of 64 examples / the trunk's forward over them",
            must=1.3,
            aim=1.1,
            note="the trunk's forward counts on both sides",
        ),
        samples.ratio(
            "verdict on a skill that is there",
            "trunk and two answer passes",
            "the whole verdict / (trunk + two answer passes)",
            must=1.15,
            aim=1.05,
            note="rows of a stored skill, answered otherwise: both passes are whole",
        ),
        samples.ratio(
            "verdict on a new skill",
            "trunk and three glances",
            "the whole verdict on a new skill / (trunk + three answer passes over a quarter of it)",
            note="settled at a glance",
        ),
        samples.ratio(
            "verdict on a new skill",
            "trunk and two answer passes",
            "the whole verdict on a new skill / (trunk + two answer passes)",
        ),
    ]


def _bench(options: Options, dtype: str, kind: int) -> Bench:
    base = workload.load(options, dtype)
    model = workload.ours(base, SKILLS)
    library = SkillLibrary()
    stored = 24 if options.toy else STORED
    for index, name in enumerate(workload.names(SKILLS)):
        library.add_skill(name, _rows(options, base, stored, index).features, name)
    skills = {name: SimpleNamespace(expert_id=name) for name in workload.names(SKILLS)}
    # Nobody knows what the base loses at these random experts' home.
    unknown = SimpleNamespace(history={})
    live = SimpleNamespace(
        base=base, model=model, library=library, skills=skills, version=lambda name: unknown
    )
    count = 16 if options.toy else ARRIVING
    return Bench(cast(LivePool, live), _encoded(options, base, count, kind, seed=200))


def _rows(options: Options, base: Base, count: int, kind: int) -> Rows:
    encoded = _encoded(options, base, count, kind)
    return Rows(encoded, TrunkCache(base, encoded))


def _encoded(
    options: Options, base: Base, count: int, kind: int, seed: int = 100
) -> tuple[Encoded, ...]:
    """Rows of random tokens, of another part of the vocabulary for each kind."""
    prompt, answer = (8, 4) if options.toy else (PROMPT, ANSWER)
    ids = workload.tokens(options, base, count, prompt + answer, seed=seed + kind).cpu()
    size = base.model.config.vocab_size
    ids = 8 + (ids % (size // 8)) + kind * (size // 10)
    return tuple(_encode(f"{kind}-{index}", row.tolist(), prompt) for index, row in enumerate(ids))


def _encode(key: str, ids: list[int], prompt: int) -> Encoded:
    trained = tuple(index >= prompt for index in range(len(ids)))
    return Encoded(input_ids=tuple(ids), trained=trained, prompt_length=prompt, key=key)


def _primal(rows: Tensor, sides: Tensor, fold: Tensor, ridge: float) -> Tensor:
    rows = rows.double()
    rows = (rows - rows.mean(0)) / rows.std(0, correction=0)
    found = torch.empty(len(rows), dtype=torch.float64)
    for index in range(int(fold.max()) + 1):
        test, train, labels = fold == index, rows[fold != index], sides[fold != index]
        means = torch.stack([train[labels == side].mean(0) for side in (0, 1)])
        centred = train - means[labels]
        within = centred.T @ centred + ridge * torch.eye(rows.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(within, means[1] - means[0])
        found[test] = (rows[test] - means.mean(0)) @ weight
    return found


if __name__ == "__main__":
    main(
        Benchmark(
            name="verdict",
            title="A verdict on 64 examples against 4 skills of 205 stored rows",
            compared="the trunk's forward over the arrival (blocks 0 to 7 of 30), then: nothing; "
            "separability from the three nearest skills, whose ranking is computed anew as after "
            "every change of the library; the base's and one expert's losses on the answers; the "
            "same and another expert's on 16 of them; the whole verdict, on rows of a stored skill "
            "with other answers and on new ones. Rows of 48 prompt and 32 answer tokens",
            arms={
                "trunk": lambda o: run(o, None),
                "trunk and separability": lambda o: run(o, separate),
                "trunk and two answer passes": lambda o: run(o, score_twice),
                "trunk and three glances": lambda o: run(o, score_glances),
                "verdict on a skill that is there": lambda o: run(o, decide, 0),
                "verdict on a new skill": lambda o: run(o, decide),
            },
            rows=rows,
            checks=checks,
            metric=("seconds", "s an arrival"),
            rounds=5,
            devices=("cpu", "cuda"),
            defaults=Options(warmup=1, repeats=4),
        )
    )
