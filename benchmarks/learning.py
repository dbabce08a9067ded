"""Learning a skill, from a file to a promoted expert, against TRL's SFTTrainer on the same rows.

python benchmarks/learning.py --data path/to/skills

Without `--data` the sample stream's skills are learned, which are easier than real ones.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import peers
import torch
import workload
from harness import Benchmark, Check, Options, Row, Samples, main, row
from torch import nn

from dylora_moe.build.pool import Pool
from dylora_moe.config import LearnSettings
from dylora_moe.experts.manager import ExpertManager
from dylora_moe.foundation.base import Base
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.records import Arrival, Example
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.text.batching import collate, length_grouped
from dylora_moe.text.reading import read_examples
from dylora_moe.text.split import split
from dylora_moe.text.synthetic import SKILLS, generate
from dylora_moe.text.template import Encoded, PromptFormat, encode_all
from dylora_moe.training.expert import train_expert
from dylora_moe.training.measure import answer_losses
from dylora_moe.training.phases import consolidation
from dylora_moe.training.reporters import JsonlReporter
from dylora_moe.training.rows import Rows

EPOCHS = 3
FORMAT = PromptFormat("plain", None)
NEW, OLDER = "wikisql", ("snips", "scan")
OURS, LOOP = "file to promoted expert", "training loop"
PADDED, PACKED = "TRL SFTTrainer, padded", "TRL SFTTrainer, packed"
ALL = "TRL SFTTrainer, padded, all blocks"


@dataclass(frozen=True)
class Task:
    """What is learned.

    Attributes:
        older: skills that the pool has when it comes.
        rows: the file's, of which some validate.
        test: rows for the held-out loss.
    """

    older: Mapping[str, tuple[Example, ...]]
    rows: tuple[Example, ...]
    test: tuple[Example, ...]


def task(options: Options) -> Task:
    """320 rows of a new skill beside two older ones."""
    few, many, test = (24, 32, 8) if options.toy else (64, 320, 200)
    if options.data is None:
        *older, new = list(SKILLS)[:3]
        rows = generate(new, many + test)
        return Task(
            {name: tuple(generate(name, few)) for name in older},
            tuple(rows[:many]),
            tuple(rows[many:]),
        )
    folder = Path(options.data)
    return Task(
        {name: _read(folder / name / "train.jsonl", few) for name in OLDER},
        _read(folder / NEW / "train.jsonl", many),
        _read(folder / NEW / "test.jsonl", test),
    )


def learn(options: Options) -> Mapping[str, Any]:
    """The product: verdict, birth, both phases, router, gate, promotion."""
    work = task(options)
    with _pool(options, work) as pool:
        assert pool.live.base is not None  # The base is loaded before, as on the other side.
        _forget_peak()
        start = time.perf_counter()
        # The random base of toy size cannot tell skills apart.
        result = pool.learn_arrivals([Arrival("new", work.rows)], as_new=options.toy)[0]
        seconds = time.perf_counter() - start
        peak = _peak(options)
        if result.action != "created":
            raise SystemExit(f"the pool {result.action} instead of growing: {result.message}")
        told = next(e for e in reversed(pool.events("trained")))
        live = pool.live
        test, _ = encode_all(work.test, live.base.tokenizer, FORMAT, None)
        rows = Rows(tuple(test), TrunkCache(live.base, test))
        loss = answer_losses(live.model, rows, expert=live.experts.names[-1]).mean
    return {
        "seconds": seconds,
        "tokens_per_second": told.numbers["tokens"] / seconds,
        "held_out_loss": loss,
        "peak_memory": peak,
        "tokens": told.numbers["tokens"],
    }


def loop(options: Options) -> Mapping[str, Any]:
    """Our training alone: one phase over the rows whose trunk states are there."""
    base = _base(options)
    rows, _, test = _encoded(options, base)
    experts = ExpertManager(base.model, base.anatomy)
    model = DyLoRAMoE(base, DynamicHybridRouter(base.anatomy.d_features), experts)
    experts.create_expert("expert_new", rank=workload.RANK, alpha=workload.ALPHA)
    cached = Rows(tuple(rows), TrunkCache(base, rows))
    held_out = Rows(tuple(test[:8]), TrunkCache(base, test[:8]))
    phase = consolidation(epochs=EPOCHS, collaboration=(0.0, 0.0), train_gate=False)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        outcome = train_expert(
            model,
            "expert_new",
            train=cached,
            evaluation={"own": held_out},
            target="own",
            phases=[phase],
            folder=Path(folder),
            reporter=JsonlReporter(Path(folder)),
        )
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "tokens_per_second": outcome.tokens / seconds}


def trl(options: Options, *, packing: bool, everywhere: bool = False) -> Mapping[str, Any]:
    """TRL on the rows that we train on, three epochs, checkpointing off."""
    base = workload.load_stock(options)
    rows, _, test = _encoded(options, base)
    blocks = None if everywhere else base.anatomy.adapted_blocks
    with tempfile.TemporaryDirectory() as folder:
        _forget_peak()
        start = time.perf_counter()
        model, trained = peers.sft(
            base, rows, Path(folder), epochs=EPOCHS, packing=packing, blocks=blocks
        )
        seconds = time.perf_counter() - start
    peak = _peak(options)
    tokens = EPOCHS * sum(len(one) for one in rows)
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "loop_tokens_per_second": tokens / trained,
        "held_out_loss": _held_out(model, base, test),
        "peak_memory": peak,
    }


def checks(options: Options) -> Sequence[Check]:
    """The loss that both sides are measured by is the same on the stock base."""
    base = _base(options, "fp32")
    _, _, test = _encoded(options, base)
    test = test[:16]
    model = workload.ours(base, 1)
    rows = Rows(tuple(test), TrunkCache(base, test))
    ours = answer_losses(model, rows, expert="base").mean
    pinned = answer_losses(model, rows, expert="expert_0").mean
    state = model.experts.state("expert_0")
    model.experts.unload()
    theirs = _held_out(base.model, base, test)
    reference = workload.peft_lora(base, blocks=base.anatomy.adapted_blocks).eval()
    peers.copy_into(reference, {"default": state})
    return [
        Check("held-out loss of the base, by both ways of measuring", abs(ours - theirs), 1e-4),
        Check(
            "held-out loss of one expert, against PEFT with its weights",
            abs(pinned - _held_out(reference, base, test)),
            1e-4,
        ),
    ]


def rows(samples: Samples) -> Sequence[Row]:
    learned = samples.values(OURS, "tokens_per_second")
    alone = samples.values(LOOP, "tokens_per_second")
    whole = _best(samples, "tokens_per_second")
    loops = _best(samples, "loop_tokens_per_second")
    padded = samples.values(PADDED, "held_out_loss")
    memory = [
        min(pair)
        for pair in zip(
            samples.values(PADDED, "peak_memory"),
            samples.values(PACKED, "peak_memory"),
            strict=True,
        )
    ]
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
            _over(samples.values(OURS, "held_out_loss"), padded),
            "held-out loss after learning / TRL's on the same blocks, padded",
            1.01,
            1.0,
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
            _over(samples.values(OURS, "peak_memory"), memory),
            "peak memory of learning one skill / TRL's, the lower of packed and padded",
            1.0,
            0.7,
        ),
    ]


def _over(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def _best(samples: Samples, metric: str) -> list[float]:
    pairs = zip(samples.values(PADDED, metric), samples.values(PACKED, metric), strict=True)
    return [max(pair) for pair in pairs]


def _read(path: Path, count: int) -> tuple[Example, ...]:
    return tuple(read_examples(path))[:count]


def _base(options: Options, dtype: str | None = None) -> Base:
    return workload.load(options, dtype)


def _encoded(options: Options, base: Base) -> tuple[list[Encoded], list[Encoded], list[Encoded]]:
    """The rows as the pool splits them: trained on, validated on, held out."""
    work = task(options)
    sides = split(list(work.rows), LearnSettings().validation_fraction)
    train, validation = (encode_all(side, base.tokenizer, FORMAT, None)[0] for side in sides)
    return train, validation, encode_all(work.test, base.tokenizer, FORMAT, None)[0]


@contextmanager
def _pool(options: Options, work: Task) -> Iterator[Pool]:
    """A pool with the older skills in it, made by a process that leaves nothing in this one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool"
        maker = get_context("spawn").Process(target=_make, args=(options, work, path))
        maker.start()
        maker.join()
        with Pool.open(path, device=options.device, dtype=options.dtype) as pool:
            yield pool


def _make(options: Options, work: Task, path: Path) -> None:
    base = str(workload.save_toy(path.parent / "base")) if options.toy else "smollm2-135m"
    place: dict[str, Any] = {"device": options.device, "dtype": options.dtype}
    with Pool.create(path, base, own_prompts=32, **place) as pool:
        quick = LearnSettings(generate_scores=0, seeding=None)
        for name, examples in work.older.items():
            pool.learn_arrivals([Arrival(name, examples)], as_new=True, settings=quick)


@torch.no_grad()
def _held_out(model: nn.Module, base: Base, rows: Sequence[Encoded]) -> float:
    """Token-mean loss of the answers, by the model's own loss."""
    model.eval()
    total, count = 0.0, 0
    for group in length_grouped([len(one) for one in rows], batch_size=16):
        batch = collate([rows[index] for index in group], base.tokenizer.pad_token_id)
        batch = {key: value.to(base.device) for key, value in batch.items()}
        del batch["prompt_mask"]
        trained = int((batch["labels"][:, 1:] != -100).sum())
        total += float(model(**batch, use_cache=False).loss) * trained
        count += trained
    return total / count


def _forget_peak() -> None:
    """What was used before does not count: setting up a pool is not learning."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak(options: Options) -> int:
    if options.device == "cuda":
        return workload.peak_memory(options)
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no VmHWM in /proc/self/status; the peak is measured on Linux only")


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
            compared="a new skill of 320 rows (wikisql where --data is given) in a pool with two "
            "others; rank 8, all-linear, blocks above the tap on both sides unless said, three "
            "epochs, 8 rows a step (TRL packed: 512 tokens), answers trained, learning rate 1e-3, "
            "cosine; ours from rows in memory to the promoted expert: verdict, seeding, "
            "consolidation with early stopping, router, gate; TRL: tokens ready, training only, "
            "checkpointing off; the base is loaded before on both sides; held-out loss over 200 "
            "test rows, token mean",
            arms=ARMS,
            rows=rows,
            checks=checks,
            metric=("tokens_per_second", "real tokens per second"),
            rounds=2,
            peers=("trl",),
        )
    )
