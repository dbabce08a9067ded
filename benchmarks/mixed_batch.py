"""A batch of eight rows on eight different experts against one PEFT LoRA and PEFT's own way.

python benchmarks/mixed_batch.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import decoding
import peers
import torch
import workload
from harness import Benchmark, Check, Options, Row, Samples, main
from torch import Tensor

from dylora_moe.foundation.base import Base
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.model.generation import generate

ROWS = 8
KINDS = workload.KINDS
NAMES = workload.names(ROWS)


def run_ours(options: Options, targets: str) -> Mapping[str, Any]:
    """Each row is routed to an expert of its own by the prompt."""
    base, ids = _prompts(options, workload.load)
    model = _routed(base, ids, targets)
    chosen = generate(model, ids, max_new_tokens=1, do_sample=False).routing
    assert chosen is not None
    if not torch.equal(chosen.weights.cpu(), torch.eye(ROWS)):
        raise SystemExit("the rows were not routed to eight experts; nothing to measure")
    return _measure(options, decoding.ours(model, ids))


def run_peft(options: Options, targets: str) -> Mapping[str, Any]:
    """One unmerged LoRA on all blocks for the whole batch."""
    base, ids = _prompts(options, workload.load_stock)
    model = workload.peft_lora(base, targets).eval()
    return _measure(options, decoding.theirs(model, base, ids))


def run_names(options: Options, targets: str) -> Mapping[str, Any]:
    """Eight LoRAs on all blocks; `adapter_names` says which row takes which."""
    base, ids = _prompts(options, workload.load_stock)
    model = peers.lora_pool(base, ROWS, targets)
    return _measure(options, decoding.theirs(model, base, ids, adapter_names=list(NAMES)))


def checks(options: Options) -> Sequence[Check]:
    """A row of the batch is that row alone on its expert, and is PEFT's `adapter_names`."""
    found = []
    for targets in KINDS:
        base = workload.load(options, "fp32")
        text = workload.tokens(options, base, ROWS, 16)
        prompts, forced = text[:, :12], text[:, 12:]
        model = _routed(base, prompts, targets)
        together = decoding.record(decoding.ours(model, prompts), forced)
        alone = [
            decoding.record(
                decoding.ours(model, prompts[row : row + 1], expert=name), forced[row : row + 1]
            )
            for row, name in enumerate(NAMES)
        ]
        states = {name: model.experts.state(name) for name in NAMES}
        model.experts.unload()
        stock = workload.load_stock(options, "fp32")
        reference = peers.lora_pool(stock, ROWS, targets, blocks=base.anatomy.adapted_blocks)
        peers.copy_into(reference, states)
        named = decoding.theirs(reference, stock, prompts, adapter_names=list(NAMES))
        theirs = decoding.record(named, forced)
        for what, logits in (("each row alone", torch.cat(alone)), ("adapter_names", theirs)):
            words = f"decode logits, {targets}, 8 rows on 8 experts, against {what}"
            found.append(Check(words, workload.largest(together, logits), 3e-4))
    return found


def rows(samples: Samples) -> Sequence[Row]:
    found = []
    for targets in KINDS:
        ours, names = f"8 experts, {targets}", f"adapter_names, {targets}"
        peft = f"PEFT LoRA, {targets}"
        words = f"8 rows on 8 different experts / %s, {targets}"
        found += [
            samples.ratio(
                ours, peft, f"decode step, {words % 'one unmerged PEFT LoRA'}", must=1.15, aim=1.05
            ),
            samples.ratio(
                ours, names, f"decode step, {words % 'PEFT adapter_names'}", must=0.6, aim=0.4
            ),
            samples.ratio(
                ours,
                peft,
                f"reading 8 prompts of 256 tokens, {words % 'one unmerged PEFT LoRA'}",
                metric="prefill",
                must=1.15,
                aim=1.05,
            ),
            samples.ratio(
                ours,
                names,
                f"reading 8 prompts of 256 tokens, {words % 'PEFT adapter_names'}",
                metric="prefill",
            ),
            samples.ratio(
                ours,
                names,
                f"peak memory of generating, {words % 'PEFT adapter_names'}",
                metric="peak_memory",
            ),
        ]
    return found


def _prompts(options: Options, load: Callable[[Options], Base]) -> tuple[Base, Tensor]:
    base = load(options)
    return base, workload.tokens(options, base, ROWS, decoding.context(options))


def _routed(base: Base, prompts: Tensor, targets: str) -> DyLoRAMoE:
    """Eight mature experts, each with a skill whose mean is one of the prompts."""
    means = workload.features(base, prompts)
    return workload.ours(base, ROWS, targets, top_k=1, mature=True, means=means)


def _measure(options: Options, generation: decoding.Generate) -> Mapping[str, Any]:
    timed = decoding.time_steps(options, generation)
    return {
        "seconds": timed["step"],
        "prefill": timed["prefill"],
        "peak_memory": workload.peak_memory(options),
    }


ARMS = workload.by_targets(
    {"8 experts": run_ours, "PEFT LoRA": run_peft, "adapter_names": run_names}
)


if __name__ == "__main__":
    main(
        Benchmark(
            name="mixed_batch",
            title="Decode step of 8 rows on 8 different experts, after 256 tokens, rank 8",
            compared="time from one new token to the next within `generate`, greedy, KV cache of "
            "257 to 288 tokens, no padding; reading the prompts is the time to the first token; "
            "ours: each row routed by its prompt to one of 8 experts on the blocks above the tap "
            "(8 to 29 of 30); PEFT: one unmerged LoRA for all rows, and 8 of them with one named "
            "for each row by adapter_names, on all blocks, in fp32 as PEFT makes them",
            arms=ARMS,
            rows=rows,
            checks=checks,
            metric=("seconds", "s a step, batch 8"),
            rounds=3,
            theirs=[f"{name}, {kind}" for kind in KINDS for name in ("PEFT LoRA", "adapter_names")],
            defaults=Options(warmup=1, repeats=2),
        )
    )
