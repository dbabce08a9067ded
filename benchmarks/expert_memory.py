"""What experts cost in memory that are owned and not in use.

python benchmarks/expert_memory.py

On a GPU that is the device's allocated memory. On a CPU it is the process's anonymous resident
memory (`Anonymous` in `/proc/self/smaps_rollup`): what only RAM holds. Pages of mapped files are
left out, since the system takes them back at will; the process's unique set size would count them.
Where there is no such file, it is that size.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
import workload
from harness import Benchmark, Check, Options, Row, Samples, main, row
from torch import Tensor

from dylora_moe.experts.manager import ExpertManager
from dylora_moe.foundation.base import Base
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.model.output import RoutedOutput
from dylora_moe.routing.router import DynamicHybridRouter

IN_USE, OWNED = 4, 256
FEW, MANY = f"{IN_USE} experts owned, {IN_USE} in use", f"{OWNED} experts owned, {IN_USE} in use"
MIB = 2**20


def run(options: Options, owned: int) -> Mapping[str, Any]:
    """Memory after routed passes over the experts in use, the others in their files."""
    base = workload.load(options)
    with tempfile.TemporaryDirectory() as folder:
        write_experts(base, Path(folder), _owned(options, owned))
        before = resident_bytes(options)
        start = time.perf_counter()
        with pool(options, base, Path(folder)) as model:
            registered = time.perf_counter() - start
            for _ in range(1 if options.toy else 3):
                answer(options, model)
            memory = resident_bytes(options)
            expert = model.experts.bytes("expert_0")
    return {
        "memory": memory / MIB,
        "memory of the pool's parts": (memory - before) / MIB,
        "an expert": expert / MIB,
        "seconds to open": registered,
    }


def write_experts(base: Base, folder: Path, count: int) -> None:
    """Random experts as plain PEFT adapters, `folder/0` and on; the base is stock afterwards."""
    manager = ExpertManager(base.model, base.anatomy)
    manager.create_expert("expert_0", rank=workload.RANK, alpha=workload.ALPHA)
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        workload.randomize(manager.parameters_of("expert_0").values(), generator)
        manager.save("expert_0", folder / str(index))
    manager.unload()


@contextmanager
def pool(options: Options, base: Base, folder: Path) -> Iterator[DyLoRAMoE]:
    """A model that owns every expert of the folder; row i of the batch is expert i's.

    Each of the first skills' means lies on a row's own features, so the router is sure of it.
    """
    manager = ExpertManager(base.model, base.anatomy)
    names = workload.names(len(list(folder.iterdir())))
    for index, name in enumerate(names):
        manager.register(name, manager.stored(folder / str(index)))
    own = workload.features(base, _batch(options, base)["input_ids"]).cpu()
    others = torch.randn(
        len(names) - IN_USE, own.shape[1], generator=torch.Generator().manual_seed(0)
    )
    router = DynamicHybridRouter(own.shape[1], top_k=1, none_threshold=1e9)
    workload.add_skills(router, torch.cat([own, own.mean(0) + 10 * others]).double())
    router.set_maturity(dict.fromkeys(names, 1.0))
    yield DyLoRAMoE(base, router, manager)
    manager.unload()


def answer(options: Options, model: DyLoRAMoE) -> RoutedOutput:
    """A routed pass over the batch."""
    with torch.inference_mode():
        output: RoutedOutput = model(**_batch(options, model.base), use_cache=False)
    return output


def resident_bytes(options: Options) -> int:
    """Bytes that only the device's, or only the process's memory holds."""
    gc.collect()
    if options.device == "cuda":
        torch.cuda.synchronize()
        return int(torch.cuda.memory_allocated())
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.exists():
        return int(psutil.Process().memory_full_info().uss)
    line = next(one for one in rollup.read_text().splitlines() if one.startswith("Anonymous:"))
    return int(line.split()[1]) * 1024


def checks(options: Options) -> Sequence[Check]:
    """With all owned the answers are those with few owned, bit for bit, and no more is loaded."""
    base = workload.load(options)
    logits, extra, weights = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for owned in (IN_USE, _owned(options, OWNED)):
            there = Path(folder) / str(owned)
            write_experts(base, there, owned)
            with pool(options, base, there) as model:
                output = answer(options, model)
                assert output.routing is not None
                logits.append(output.logits)
                weights.append(output.routing.weights[:, :IN_USE].float().cpu())
                extra.append(len(model.experts.resident) - IN_USE)
    one_hot = torch.eye(IN_USE)
    return [
        Check("outputs, many owned against few", workload.largest(*logits), 0.0),
        Check("every row goes to its own expert", workload.largest(weights[1], one_hot), 1e-6),
        Check("experts in the layers beyond those in use", float(max(extra)), 0.0),
    ]


def rows(samples: Samples) -> Sequence[Row]:
    few, many = samples.values(FEW, "memory"), samples.values(MANY, "memory")
    each = [(b - a) / (OWNED - IN_USE) for a, b in zip(few, many, strict=True)]
    one = samples.median(MANY, "an expert")
    return [
        samples.ratio(
            MANY,
            FEW,
            f"memory, {OWNED} experts owned, {IN_USE} in use / {IN_USE} owned",
            metric="memory",
            must=1.2,
            aim=1.05,
        ),
        row(
            each,
            "MiB for each expert that is owned and not in use",
            note=f"{one:.1f} MiB where it is in use",
        ),
        samples.row(
            MANY, f"seconds to register {OWNED} experts by their files and to fit a router of as "
            "many skills", metric="seconds to open",
        ),
        samples.row(
            MANY, f"MiB of the pool's parts beyond process and base, {OWNED} experts owned, "
            f"{IN_USE} in use", metric="memory of the pool's parts",
        ),
    ]  # fmt: skip


def _owned(options: Options, owned: int) -> int:
    return min(owned, 12) if options.toy else owned


def _batch(options: Options, base: Base) -> dict[str, Tensor]:
    length = 16 if options.toy else 64
    ids = workload.tokens(options, base, IN_USE, length)
    return {"input_ids": ids, "prompt_mask": torch.ones_like(ids, dtype=torch.bool)}


if __name__ == "__main__":
    main(
        Benchmark(
            name="expert_memory",
            title=f"Memory of a pool with {IN_USE} experts in use",
            compared=f"the same routed passes over {IN_USE} rows on {IN_USE} experts (rank 8, "
            f"all-linear, blocks above the tap), in a pool that owns {OWNED} and in one that owns "
            f"{IN_USE}, registered from files; the whole process, base and libraries included: "
            "allocated memory on a GPU, anonymous resident memory on a CPU",
            arms={FEW: partial(run, owned=IN_USE), MANY: partial(run, owned=OWNED)},
            rows=rows,
            checks=checks,
            metric=("memory", "MiB, base and libraries included"),
            rounds=3,
        )
    )
