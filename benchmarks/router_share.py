"""The router's share of a training step and of a decode step, with eight experts.

python benchmarks/router_share.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import decoding
import torch
import workload
from harness import Benchmark, Check, Options, Row, Samples, main, timed
from torch import Tensor

from dylora_moe.build.making import OWN_PROMPTS
from dylora_moe.foundation.base import Base
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.foundation.tap import Hiddens
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.model.generation import generate
from dylora_moe.records import BASE_NAME
from dylora_moe.text.template import Encoded
from dylora_moe.training.gradient import Task, UpdateGradient
from dylora_moe.training.memory import MicroBatches
from dylora_moe.training.objective import (
    Rehearsal,
    RehearsalRows,
    RouterLossWeights,
    mixture_gates,
    router_losses,
)
from dylora_moe.training.phases import Phase
from dylora_moe.training.rows import Rows

EXPERTS = 8
STORED = 205
_PHASE = Phase(name="consolidation", train_gate=True, collaboration=(0.25, 0.25))


def run_training(options: Options) -> Mapping[str, Any]:
    """A step of consolidation: one expert and the gate learn, eight skills are rehearsed."""
    base = workload.load(options)
    model = workload.ours(base, EXPERTS)
    first, *others = workload.names(EXPERTS)
    model.experts.set_trainable([first])
    model.train()
    task = _task(options, model, first, tuple(others[:2]))
    rows = tuple(range(len(task.train)))
    lengths = task.train.lengths
    micro = MicroBatches(sum(lengths), lengths, print)
    update = UpdateGradient(model, task, _PHASE, 1000, 0, micro)
    every = torch.optim.AdamW([p for group in update.groups.values() for p in group], lr=1e-5)
    gate = torch.optim.AdamW(update.groups["router"], lr=1e-5)
    assert task.rehearsal is not None
    rehearsed = task.rehearsal.prepared(model.router)

    def step() -> None:
        update.make([rows], 1)
        every.step()
        every.zero_grad()

    def router_alone() -> None:
        mixed = mixture_gates(model.router, task.train.features, first, task.neighbours, 0.25)
        loss = _losses(model, task, rehearsed) + (mixed.weights * mixed.weights).sum()
        loss.backward()
        gate.step()
        gate.zero_grad()

    sync = workload.synchronizer(options)
    seconds = timed(step, options, sync)
    alone = statistics.median(timed(router_alone, options, sync))
    return {"seconds": seconds, "share": [alone / one for one in seconds]}


def run_decode(options: Options, count: int) -> Mapping[str, Any]:
    """Time in the tap's listener and in the router, of all that `generate` takes for a token."""
    base = workload.load(options)
    model = workload.ours(base, EXPERTS)
    ids = workload.tokens(options, base, count, decoding.context(options))
    calls: list[float] = []
    with _clocked(model, calls, workload.synchronizer(options)):
        found = decoding.time_steps(options, decoding.ours(model, ids))
    seconds = found["step"]
    # The first call of each generation routes the prompt; those after it are a step's.
    spent = statistics.median(calls)
    return {"seconds": seconds, "share": spent / statistics.median(seconds), "prefill": max(calls)}


def checks(options: Options) -> Sequence[Check]:
    """Asked once at the prompt is the same as asked beforehand; the losses are plain autograd's."""
    base = workload.load(options, "fp32")
    model = workload.ours(base, EXPERTS)
    ids = workload.tokens(options, base, 2, 16)
    carried = generate(model, ids, max_new_tokens=4, do_sample=False).routing
    assert carried is not None
    with torch.no_grad():
        asked = model.router(workload.features(base, ids))
    # A sample of the rehearsal is as if it were gathered anew in each step.
    task = _task(options, model, "expert_0", ())
    assert task.rehearsal is not None
    rows = task.rehearsal.prepared(model.router)
    drawn, generator = [], torch.Generator().manual_seed(3)
    for label in rows.labels.unique():
        mine = (rows.labels == label).nonzero()[:, 0]
        drawn.append(mine[torch.randperm(len(mine), generator=generator)[:8]])
    same = torch.equal(rows.sample(3).features, rows.features[torch.cat(drawn)])
    difference = workload.largest(carried.weights, asked.weights)
    return [
        Check("weights routed in the prefill against the router asked by itself", difference, 1e-4),
        Check("another rehearsal sample than gathered plainly (1 is yes)", float(not same), 0.5),
    ]


def rows(samples: Samples) -> Sequence[Row]:
    goals: dict[str, Any] = {"metric": "share", "must": 0.03, "aim": 0.01}
    return [
        samples.row("training", "the router's share of a training step, 8 experts", **goals),
        *(
            samples.row(
                f"decode, batch {count}",
                f"the router's share of a decode step, 8 experts, batch {count}",
                **goals,
            )
            for count in (1, 8)
        ),
    ]


def _losses(model: DyLoRAMoE, task: Task, rehearsed: RehearsalRows) -> Tensor:
    sample = rehearsed.sample(1).to(model.device)
    features = task.train.features.to(model.device)
    return router_losses(model.router, features, sample, task.losses).total


@contextmanager
def _clocked(model: DyLoRAMoE, calls: list[float], wait: Callable[[], None]) -> Iterator[None]:
    """Notes the seconds of every call of whoever listens at the tap, the device waited for."""
    listening = model.tap.listening

    @contextmanager
    def timed_listening(callback: Callable[[Hiddens], None], *args: Any) -> Iterator[None]:
        def hear(hiddens: Hiddens) -> None:
            wait()
            start = time.perf_counter()
            callback(hiddens)
            wait()
            calls.append(time.perf_counter() - start)

        with listening(hear, *args):
            yield

    model.tap.listening = timed_listening  # type: ignore[method-assign]
    try:
        yield
    finally:
        model.tap.listening = listening  # type: ignore[method-assign]


def _task(options: Options, model: DyLoRAMoE, expert: str, neighbours: tuple[str, ...]) -> Task:
    count, length = workload.batch_shape(options)
    train = _rows(options, model.base, count, length)
    width, generator = model.base.anatomy.d_features, torch.Generator().manual_seed(5)
    stored = 24 if options.toy else STORED
    features = {
        name: torch.randn(width, generator=generator)
        + torch.randn(stored, width, generator=generator)
        for name in workload.names(EXPERTS)
    }
    features[BASE_NAME] = torch.randn(OWN_PROMPTS, width, generator=generator)
    if not model.router.table.has_none:
        model.router.set_none(FeatureStatistics.from_features(features[BASE_NAME]))
    return Task(expert, train, {}, "own", neighbours, Rehearsal(features), RouterLossWeights())


def _rows(options: Options, base: Base, count: int, length: int) -> Rows:
    ids = workload.tokens(options, base, count, length).tolist()
    prompt = length // 2
    trained = tuple(index >= prompt for index in range(length))
    encoded = tuple(
        Encoded(input_ids=tuple(row), trained=trained, prompt_length=prompt, key=str(index))
        for index, row in enumerate(ids)
    )
    return Rows(encoded, TrunkCache(base, encoded))


if __name__ == "__main__":
    main(
        Benchmark(
            name="router_share",
            title="The router's share of a step, 8 experts",
            compared="training: a step of consolidation, 4 rows of 256 tokens from the trunk's "
            "cache, half of each trained, one expert of three in mixture and the gate learning, "
            "against the same gate's mixture weights, losses over 72 rehearsed rows, their "
            "gradient and AdamW alone; decode: the time in what listens at the tap, of the time "
            "between two tokens",
            arms={
                "training": run_training,
                "decode, batch 1": lambda o: run_decode(o, 1),
                "decode, batch 8": lambda o: run_decode(o, 8),
            },
            rows=rows,
            checks=checks,
            rounds=3,
            defaults=Options(warmup=2, repeats=6),
        )
    )
