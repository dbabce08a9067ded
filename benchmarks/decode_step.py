"""A decode step with eight experts in dense mixture against one PEFT LoRA and PEFT's X-LoRA.

python benchmarks/decode_step.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import decoding
import peers
import torch
import workload
from decoding import Generate
from harness import Benchmark, Check, Options, Row, Samples, main
from reference import Merged
from torch import Tensor

from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.base import Base
from dylora_moe.routing.routing import Routing

EXPERTS = 8
KINDS = workload.KINDS
BATCHES = (1, 8)
XLORA_STEPS = 3
"""X-LoRA reads everything again for every token; its steps hardly differ."""


def run_ours(options: Options, targets: str) -> Mapping[str, Any]:
    """Eight young experts: the prompts' routing is dense, and carried to every step."""
    base = workload.load(options)
    model = workload.ours(base, EXPERTS, targets)
    ids = workload.tokens(options, base, max(BATCHES), decoding.context(options))
    workload.require_dense(model, workload.features(base, ids))
    return _measure(options, base, lambda ids: decoding.ours(model, ids))


def run_peft(options: Options, targets: str) -> Mapping[str, Any]:
    """One unmerged LoRA on all blocks, as people use it."""
    base = workload.load_stock(options)
    model = workload.peft_lora(base, targets).eval()
    return _measure(options, base, lambda ids: decoding.theirs(model, base, ids))


def run_xlora(options: Options, targets: str) -> Mapping[str, Any]:
    """X-LoRA over eight adapters on all blocks; each step is a pass over the whole sequence."""
    base = workload.load_stock(options)
    model = peers.xlora(base, EXPERTS, targets).eval()
    ids = workload.tokens(options, base, 1, decoding.context(options))
    timed = decoding.time_steps(options, decoding.theirs(model, base, ids), XLORA_STEPS)
    return {"seconds": timed["step"], "peak_memory": workload.peak_memory(options)}


def checks(options: Options) -> Sequence[Check]:
    """Eight experts are the base with their weighted deltas merged; one expert is one PEFT LoRA."""
    found = []
    for targets in KINDS:
        base = workload.load(options, "fp32")
        prompts, forced = _texts(options, base)
        model = workload.ours(base, EXPERTS, targets)
        names = model.experts.names
        generator = torch.Generator().manual_seed(3)
        weights = torch.rand(len(prompts), EXPERTS, generator=generator).softmax(-1)
        gates = Gates(names, weights.to(base.device))
        # In the form that is measured: `generate`, and its cache.
        mixed = decoding.record(decoding.ours(model, prompts, gates=gates), forced)
        routed = decoding.record(decoding.ours(model, prompts), forced)
        routing: Routing = model.router(workload.features(base, prompts))
        single = decoding.record(decoding.ours(model, prompts, expert=names[0]), forced)
        states = {name: model.experts.state(name) for name in names}
        model.experts.unload()
        stock = workload.load_stock(options, "fp32")
        merged = Merged(stock, states)
        for what, logits, given in (
            ("given weights", mixed, gates.weights),
            ("the router's weights", routed, routing.weights.detach()),
        ):
            difference = workload.largest(logits, merged.answers(prompts, forced, given))
            words = f"decode logits, {targets}, {what}, against deltas merged into the base"
            found.append(Check(words, difference, 3e-4))
        reference = workload.peft_lora(stock, targets, blocks=base.anatomy.adapted_blocks).eval()
        peers.copy_into(reference, {"default": states[names[0]]})
        theirs = decoding.record(decoding.theirs(reference, stock, prompts), forced)
        words = f"decode logits, {targets}, one expert, against PEFT on the same blocks"
        found.append(Check(words, workload.largest(single, theirs), 3e-4))
    return found


def rows(samples: Samples) -> Sequence[Row]:
    found = []
    for targets in KINDS:
        ours, peft = f"8 experts dense, {targets}", f"PEFT LoRA, {targets}"
        found += [
            samples.ratio(
                ours,
                peft,
                "decode step with cache, 8 experts dense / one unmerged PEFT LoRA, "
                f"batch {count}, {targets}",
                metric=_metric(count),
                must=1.00,
                aim=0.90,
            )
            for count in BATCHES
        ]
        found.append(
            samples.ratio(
                ours,
                f"X-LoRA, {targets}",
                f"decode step / PEFT X-LoRA's, 8 experts, batch 1, {targets}",
                must=0.07,
                aim=0.05,
            )
        )
    return found


def _texts(options: Options, base: Base) -> tuple[Tensor, Tensor]:
    """Two short prompts and the tokens that follow them."""
    text = workload.tokens(options, base, 2, 16)
    return text[:, :12], text[:, 12:]


def _metric(count: int) -> str:
    return "seconds" if count == 1 else f"seconds_batch_{count}"


def _measure(options: Options, base: Base, made: Callable[[Tensor], Generate]) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for count in BATCHES:
        ids = workload.tokens(options, base, count, decoding.context(options))
        timed = decoding.time_steps(options, made(ids))
        found[_metric(count)] = timed["step"]
        found[f"prefill_batch_{count}"] = timed["prefill"]
    return found | {"peak_memory": workload.peak_memory(options)}


ARMS = workload.by_targets(
    {"8 experts dense": run_ours, "PEFT LoRA": run_peft, "X-LoRA": run_xlora}
)


if __name__ == "__main__":
    main(
        Benchmark(
            name="decode_step",
            title="Decode step after 256 tokens, rank 8",
            compared="time from one new token to the next within `generate`, greedy, after prompts "
            "of 256 random tokens; ours: 8 experts on the blocks above the tap (8 to 29 of 30), "
            "routed densely by the prompt, all at about one weight; PEFT: one unmerged LoRA on "
            "all blocks, in fp32 as PEFT makes it; both with a KV cache of 257 to 288 tokens. "
            "X-LoRA over 8 adapters on all blocks has no cache: its step is two passes over all of "
            "257 to 259 tokens, batch 1",
            arms=ARMS,
            rows=rows,
            checks=checks,
            metric=("seconds", "s a step, batch 1"),
            rounds=3,
            theirs=[f"{name}, {kind}" for kind in KINDS for name in ("PEFT LoRA", "X-LoRA")],
            defaults=Options(warmup=1, repeats=2),
        )
    )
