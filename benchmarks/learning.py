"""Learning a skill, from a file to a promoted expert, against TRL's SFTTrainer on the same rows.

python benchmarks/learning.py --data path/to/skills

Without `--data` the sample stream's skills are learned, which are easier than real ones. `--rows`
says how many rows the new skill has.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import peak
import peers
import skill_rows
import torch
import workload
from harness import Benchmark, Check, Options, Row, Samples, main, row
from torch import nn

from dylora_moe.config import LearnSettings
from dylora_moe.experts.manager import ExpertManager
from dylora_moe.foundation.base import Base
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.text.template import Encoded
from dylora_moe.training.expert import train_expert
from dylora_moe.training.measure import answer_losses
from dylora_moe.training.phases import consolidation
from dylora_moe.training.reporters import JsonlReporter
from dylora_moe.training.rows import Rows

EPOCHS = 3
OURS, LOOP = "file to promoted expert", "training loop"
PADDED, PACKED = "TRL SFTTrainer, padded", "TRL SFTTrainer, packed"
ALL = "TRL SFTTrainer, padded, all blocks"
WATCHED = 4
"""Validation rows of the loop alone, which must have some; TRL's has none."""


def learn(options: Options) -> Mapping[str, Any]:
    """The product: reading, verdict, birth, consolidation, router, gate, promotion."""
    work = skill_rows.task(options)
    with skill_rows.pool(options, work) as pool, tempfile.TemporaryDirectory() as folder:
        file = skill_rows.write(work, Path(folder) / "new.jsonl")
        base = pool.live.base  # It is loaded before, as on the other side.
        sides = skill_rows.encoded(options, base)
        peak.forget()
        start = time.perf_counter()
        # The random base of toy size cannot tell skills apart.
        result = pool.learn(file, as_new=options.toy, settings=LearnSettings(seeding=None))
        seconds = time.perf_counter() - start
        highest = peak.read(options)
        if result.action != "created":
            raise SystemExit(f"the pool {result.action} instead of growing: {result.message}")
        told = next(e for e in reversed(pool.events("trained")))
        loss = _own_loss(pool.live.model, pool.live.experts.names[-1], sides.test)
    # As on TRL's side; fewer where training stopped early.
    tokens = min(_tokens(sides.train), int(told.numbers["tokens"]))
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "held_out_loss": loss,
        "peak_memory": highest,
        "tokens": tokens,
    }


def loop(options: Options) -> Mapping[str, Any]:
    """Our training alone: one phase over the rows, whose trunk states are there."""
    base = workload.load(options)
    sides = skill_rows.encoded(options, base)
    experts = ExpertManager(base.model, base.anatomy)
    model = DyLoRAMoE(base, DynamicHybridRouter(base.anatomy.d_features), experts)
    experts.create_expert("expert_new", rank=workload.RANK, alpha=workload.ALPHA)
    before = time.perf_counter()
    train, watched = _cached(base, sides.train), _cached(base, sides.validation[:WATCHED])
    trunk = time.perf_counter() - before
    # So few rows are not to stop it early.
    phase = consolidation(
        epochs=EPOCHS, collaboration=(0.0, 0.0), train_gate=False, patience=EPOCHS + 1
    )
    last: dict[str, torch.Tensor] = {}

    def keep(done: int, steps: int, _: Mapping[str, Any]) -> None:
        if done == steps:
            last.update(experts.state("expert_new"))

    with tempfile.TemporaryDirectory() as folder:
        peak.forget()
        start = time.perf_counter()
        outcome = train_expert(
            model,
            "expert_new",
            train=train,
            evaluation={"own": watched},
            target="own",
            phases=[phase],
            folder=Path(folder),
            reporter=JsonlReporter(Path(folder)),
            on_progress=keep,
        )
        seconds = time.perf_counter() - start
    highest = peak.read(options)
    tokens = min(_tokens(sides.train), outcome.tokens)
    # The watched rows are too few to choose an epoch by: the last weights count, as with TRL.
    experts.restore("expert_new", last)
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "tokens_per_second_with_trunk": tokens / (seconds + trunk),
        "held_out_loss": _own_loss(model, "expert_new", sides.test),
        "peak_memory": highest,
    }


def trl(options: Options, *, packing: bool, everywhere: bool = False) -> Mapping[str, Any]:
    """TRL on the rows that we train on, three epochs, checkpointing off."""
    peers.import_sft()
    base = workload.load_stock(options)
    sides = skill_rows.encoded(options, base)
    blocks = None if everywhere else base.anatomy.adapted_blocks
    with tempfile.TemporaryDirectory() as folder:
        peak.forget()
        start = time.perf_counter()
        model, trained = peers.sft(
            base, sides.train, Path(folder), epochs=EPOCHS, packing=packing, blocks=blocks
        )
        seconds = time.perf_counter() - start
    highest = peak.read(options)
    tokens = _tokens(sides.train)
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "loop_tokens_per_second": tokens / trained,
        "held_out_loss": _held_out(model, base, sides.test),
        "peak_memory": highest,
    }


def checks(options: Options) -> Sequence[Check]:
    """The loss that both sides are measured by is the same, on a base that has nothing of ours."""
    base = workload.load(options, "fp32")
    test = skill_rows.encoded(options, base).test[:16]
    model = workload.ours(base, 1)
    ours = answer_losses(model, _cached(base, test), expert="base").mean
    pinned = _own_loss(model, "expert_0", test)
    state = model.experts.state("expert_0")
    stock = workload.load_stock(options, "fp32")
    theirs = _held_out(stock.model, stock, test)
    reference = workload.peft_lora(stock, blocks=base.anatomy.adapted_blocks).eval()
    peers.copy_into(reference, {"default": state})
    return [
        Check("held-out loss of the base, by both ways of measuring", abs(ours - theirs), 1e-4),
        Check(
            "held-out loss of one expert, against PEFT with its weights",
            abs(pinned - _held_out(reference, stock, test)),
            1e-4,
        ),
    ]


def rows(samples: Samples) -> Sequence[Row]:
    learned = samples.values(OURS, "tokens_per_second")
    alone = samples.values(LOOP, "tokens_per_second")
    whole = _each(max, samples, "tokens_per_second")
    loops = _each(max, samples, "loop_tokens_per_second")
    loss = _each(min, samples, "held_out_loss")
    with_trunk = samples.values(LOOP, "tokens_per_second_with_trunk")
    return [
        row(
            _over(learned, whole),
            "learning a skill from file to promoted expert, tokens per second / TRL SFTTrainer, "
            "same rows and blocks, the faster of packed and padded",
            2.0,
            3.0,
            "at least",
        ),
        row(
            _over(alone, loops),
            "the training loop alone, tokens per second / TRL's",
            3.0,
            4.0,
            "at least",
        ),
        row(
            _over(with_trunk, loops),
            "the training loop with the trunk's pass before it, tokens per second / TRL's loop",
            direction="at least",
        ),
        row(
            _over(samples.values(OURS, "held_out_loss"), loss),
            "held-out loss after learning / TRL's on the same blocks, the lower of packed and "
            "padded",
            1.01,
            1.0,
        ),
        row(
            _over(samples.values(LOOP, "held_out_loss"), loss),
            "held-out loss after the training loop alone / TRL's on the same blocks, the lower of "
            "packed and padded",
        ),
        samples.ratio(
            OURS,
            ALL,
            "held-out loss with blocks above the tap / TRL on all blocks",
            metric="held_out_loss",
            must=1.02,
            aim=1.0,
        ),
        row(
            _over(samples.values(OURS, "peak_memory"), _each(min, samples, "peak_memory")),
            "peak memory of learning one skill / TRL's, the lower of packed and padded",
            1.0,
            0.7,
        ),
    ]


def _over(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def _each(choose: Callable[[Sequence[float]], float], samples: Samples, metric: str) -> list[float]:
    """TRL's better arm of each round."""
    pairs = zip(samples.values(PADDED, metric), samples.values(PACKED, metric), strict=True)
    return [choose(pair) for pair in pairs]


def _tokens(rows: Sequence[Encoded]) -> int:
    """Tokens of all epochs, padding not counted."""
    return EPOCHS * sum(len(one) for one in rows)


def _cached(base: Base, rows: Sequence[Encoded]) -> Rows:
    return Rows(tuple(rows), TrunkCache(base, rows))


def _own_loss(model: DyLoRAMoE, expert: str, rows: Sequence[Encoded]) -> float:
    return answer_losses(model, _cached(model.base, rows), expert=expert).mean


def _held_out(model: nn.Module, base: Base, rows: Sequence[Encoded]) -> float:
    """Token-mean loss of the answers."""
    losses, tokens = peers.row_losses(model, base, rows)
    return sum(losses) / sum(tokens)


ARMS: dict[str, Callable[[Options], Mapping[str, Any]]] = {
    OURS: learn,
    LOOP: loop,
    PADDED: lambda options: trl(options, packing=False),
    PACKED: lambda options: trl(options, packing=True),
    ALL: lambda options: trl(options, packing=False, everywhere=True),
}


if __name__ == "__main__":
    main(
        Benchmark(
            name="learning",
            title="Learning one skill: real tokens per second",
            compared="a new skill of {rows} rows (wikisql where --data is given) in a pool with "
            "two others; rank 8, all-linear, blocks above the tap on both sides unless said, three "
            "epochs, 8 rows a step (TRL packed: 512 tokens), answers trained, learning rate "
            f"{peers.RATE:g}, cosine; ours from a JSONL file to the promoted expert: verdict, "
            "consolidation with early stopping, router, gate; our seeding phase is off, so that "
            "both sides see the "
            "same rows as often, and tokens are the epochs' times those of the rows trained on, "
            "fewer where ours stopped early; our loop alone is measured with the trunk's states "
            "there before, and once with their computation; it has to evaluate, which TRL's does "
            f"not, and does so on {WATCHED} validation rows before and after each epoch; its "
            "held-out loss is of its last weights, as TRL's; TRL: tokens ready, set-up of "
            "dataset and trainer and training (its loop: training alone), checkpointing off; "
            "PEFT keeps its adapters and their products in fp32, as it makes them, ours compute in "
            "the base's bf16 over fp32 masters; libraries and base are loaded before on "
            "both sides; held-out loss over 200 test rows, token mean",
            arms=ARMS,
            rows=rows,
            checks=checks,
            metric=("tokens_per_second", "real tokens per second"),
            rounds=2,
            peers=("trl",),
            theirs=(PADDED, PACKED, ALL),
            uses_data=True,
            defaults=Options(rows=skill_rows.ROWS),
        )
    )
