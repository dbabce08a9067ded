"""A base in 8 and 4 bits against the same in bf16: a decode step, a training step, the weights.

python benchmarks/quantized_bases.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import decoding
import torch
import workload
from harness import Benchmark, Check, Options, Row, Samples, main, timed

from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.anatomy import blocks
from dylora_moe.foundation.base import Base
from dylora_moe.foundation.quantized import Quantization, quantize_blocks

EXPERT = workload.names(1)[0]
FORMS: tuple[Quantization, ...] = ("int8", "int4", "nf4")
STOCK = "bf16"
# What each form may be off by in a matrix product, of its norm, for weights drawn at random.
TOLERANCES = {"int8": 0.02, "int4": 0.12, "nf4": 0.12}


def run_decode(options: Options, form: Quantization | None) -> Mapping[str, Any]:
    """One row, one expert pinned, with the KV cache."""
    base = _base(options, form)
    model = workload.ours(base, 1)
    ids = workload.tokens(options, base, 1, decoding.context(options))
    gates = Gates.only(EXPERT, 1, base.device)
    found = decoding.time_steps(options, decoding.ours(model, ids, gates=gates))
    return {"seconds": found["step"], "prefill": found["prefill"], "weights": _bytes(base)}


def run_step(options: Options, form: Quantization | None) -> Mapping[str, Any]:
    """Forward and backward of one expert, no trunk cache, every position trained."""
    base = _base(options, form)
    model = workload.ours(base, 1)
    model.experts.set_trainable(model.experts.names)
    model.train()
    ids = workload.tokens(options, base, *workload.batch_shape(options))
    gates = Gates.only(EXPERT, len(ids), base.device)

    def step() -> None:
        model(input_ids=ids, labels=ids, gates=gates, loss_only=True).loss.backward()
        model.zero_grad()

    seconds = timed(step, options, workload.synchronizer(options))
    return {"seconds": seconds, "peak_memory": workload.peak_memory(options)}


def checks(options: Options) -> Sequence[Check]:
    """A block's largest layer multiplies as its weight does, to what the form rounds."""
    found = []
    for form in _forms():
        layers = []
        for one in (None, form):
            generator = torch.Generator().manual_seed(3)
            base = workload.load(options, "fp32")
            largest = max(_linears(base), key=lambda m: m.in_features * m.out_features)
            # Random and large enough whatever the size of the run.
            fresh = torch.nn.Linear(128, 256, bias=False, device=base.device)
            with torch.no_grad():
                fresh.weight.copy_(torch.randn(fresh.weight.shape, generator=generator))
            path = next(name for name, m in base.model.named_modules() if m is largest)
            parent, _, leaf = path.rpartition(".")
            setattr(base.model.get_submodule(parent), leaf, fresh)
            if one is not None:
                quantize_blocks(base.model, base.anatomy, one, base.device)
            layers.append(base.model.get_submodule(path))
        x = torch.randn(64, 128, generator=torch.Generator().manual_seed(4)).to(base.device)
        with torch.no_grad():
            stock, got = (layer(x) for layer in layers)
        off = float((got - stock).norm() / stock.norm())
        found.append(Check(f"a linear layer in {form}, of its norm", off, TOLERANCES[form]))
    return found


def rows(samples: Samples) -> Sequence[Row]:
    found = []
    for form in _forms():
        for kind, words in (("decode", "decode step, batch 1"), ("step", "training step")):
            measure = f"{words}, one expert, base in {form} / in {STOCK}"
            found.append(samples.ratio(f"{form}, {kind}", f"{STOCK}, {kind}", measure))
        measure = f"bytes of the blocks' weights, {form} / {STOCK}"
        ratio = samples.ratio(f"{form}, decode", f"{STOCK}, decode", measure, metric="weights")
        found.append(ratio)
    return found


def _base(options: Options, form: Quantization | None) -> Base:
    base = workload.load(options)
    if form is not None:
        quantize_blocks(base.model, base.anatomy, form, base.device)
        base.model.requires_grad_(False).eval()
    return base


def _linears(base: Base) -> list[torch.nn.Linear]:
    found = blocks(base.model, base.anatomy).modules()
    return [module for module in found if isinstance(module, torch.nn.Linear)]


def _bytes(base: Base) -> int:
    """Weights, scales and zeros of the blocks' linear layers, without the experts."""
    total = 0
    for layer in _linears(base):
        total += sum(t.nbytes for t in (*layer.parameters(), *layer.buffers()))
        state = getattr(layer.weight, "quant_state", None)
        if state is not None:
            nested = [state.absmax] if state.state2 is None else [state.absmax, state.state2.absmax]
            total += sum(t.nbytes for t in nested)
    return total


def _forms() -> tuple[Quantization, ...]:
    there = find_spec("bitsandbytes") is not None
    return tuple(form for form in FORMS if form != "nf4" or there)


def _arms() -> dict[str, Callable[[Options], Mapping[str, Any]]]:
    found: dict[str, Callable[[Options], Mapping[str, Any]]] = {}
    for form in (None, *_forms()):
        name = form or STOCK
        found[f"{name}, decode"] = lambda o, f=form: run_decode(o, f)
        found[f"{name}, step"] = lambda o, f=form: run_step(o, f)
    return found


if __name__ == "__main__":
    main(
        Benchmark(
            name="quantized_bases",
            title="A base in 8 and 4 bits: a decode step at batch 1, a training step of 4 x 256",
            compared="SmolLM2-135M with one expert of rank 8 on all linear layers above the tap, "
            "the blocks' linear layers in each form, head and embedding in bf16; nf4 is "
            "bitsandbytes', the others are torch's operators; forward and backward without the "
            "optimizer, no trunk cache, no padding",
            arms=_arms(),
            rows=rows,
            checks=checks,
            rounds=3,
            defaults=Options(warmup=1, repeats=4),
        )
    )
