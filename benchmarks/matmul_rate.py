"""How much of the machine's rate of matrix products a training step reaches.

python benchmarks/matmul_rate.py

The rate is measured, not looked up: bf16 products of the model's own shapes, and large square ones,
of which the fastest of all is what the machine can do. A step's operations are counted, not
measured, and attention's score products are left out of them, so the fractions are a little too
low.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import workload
from harness import Benchmark, Check, Options, Row, Samples, main, row, timed
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.anatomy import blocks
from dylora_moe.foundation.placement import DTYPES
from dylora_moe.foundation.trunk import trunk_states
from dylora_moe.training.meter import operations_per_token

EXPERTS = 8
MACHINE = "machine: the best large square product"
OWN = "machine: the model's own shapes"
STEPS = {
    "training step, 8 experts": (EXPERTS, False),
    "training step, 8 experts, trunk cache": (EXPERTS, True),
    "learning step, one expert, answers only": (1, True),
}


@dataclass(frozen=True)
class Step:
    """A step that can be run, and what it takes.

    Attributes:
        loss: forward.
        learned: what the optimizer moves.
        operations: of forward and backward, counted from parameters.
    """

    loss: Callable[[], Tensor]
    learned: Sequence[nn.Parameter]
    operations: int


def prepare(options: Options, experts: int, cached: bool, attention: str | None = None) -> Step:
    """Our step: eight experts in dense mixture, or one expert alone learning from its answers.

    Args:
        options: size and device.
        experts: eight, or one.
        cached: whether the trunk's states are computed beforehand.
        attention: which of transformers' implementations; the base's own where None.
    """
    base = workload.load(options)
    if attention is not None:
        base.model.set_attn_implementation(attention)
    model = workload.ours(base, experts)
    model.experts.set_trainable(model.experts.names)
    model.train()
    rows, length = workload.batch_shape(options)
    ids = workload.tokens(options, base, rows, length)
    prompt = torch.arange(length, device=ids.device).expand_as(ids) < length // 2
    batch = {"input_ids": ids, "prompt_mask": prompt}
    alone = experts == 1
    # The label at a position is what its left neighbour is to predict: every row loses one.
    labels = ids.masked_fill(prompt, -100) if alone else ids
    chosen: dict[str, Any] = {
        "trunk": trunk_states(base, batch) if cached else None,
        "gates": Gates.only("expert_0", rows, base.device) if alone else None,
    }

    def loss() -> Tensor:
        output = model(**batch, labels=labels, loss_only=True, **chosen)
        assert output.loss is not None
        return output.loss

    above, head = operations_per_token(model)
    trained = int((labels[:, 1:] != -100).sum())
    operations = above * ids.numel() + head * trained
    if not cached:
        below = blocks(base.model, base.anatomy)[: base.anatomy.tap_layer]
        operations += 2 * ids.numel() * sum(p.numel() for b in below for p in b.parameters())
    return Step(loss, [p for p in model.parameters() if p.requires_grad], operations)


def run_step(options: Options, experts: int, cached: bool) -> Mapping[str, Any]:
    """Seconds of a step with its optimizer, and operations a second."""
    step = prepare(options, experts, cached)
    optimizer = torch.optim.AdamW(step.learned, lr=1e-4, fused=True)

    def once() -> None:
        step.loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = timed(once, options, workload.synchronizer(options))
    return {"seconds": seconds, "rate": [step.operations / one / 1e9 for one in seconds]}


def run_squares(options: Options) -> Mapping[str, Any]:
    """The fastest of some large square products, and the rate of each."""
    sides = (64, 128) if options.toy else (1024, 2048, 4096)
    sides += (8192, 16384) if options.device == "cuda" and not options.toy else ()
    rates = {f"rate, {n} x {n} x {n}": _rate(options, n, n, n) for n in sides}
    return {"rate": max(rates.values()), **rates}


def run_own(options: Options) -> Mapping[str, Any]:
    """The rate of the model's own products, forward and for the gradient of their input.

    Each shape counts by its share of the operations, so the mean is that of the times.
    """
    base = workload.load(options)
    rows, length = workload.batch_shape(options)
    linear = [m for m in base.model.modules() if isinstance(m, nn.Linear)]
    shapes = Counter((m.in_features, m.out_features) for m in linear)
    del base, linear
    seconds = operations = 0.0
    rates = {}
    for (d_in, d_out), count in shapes.items():
        work = 2.0 * rows * length * d_in * d_out * count
        for inner, outer, way in ((d_in, d_out, "forward"), (d_out, d_in, "backward")):
            rate = _rate(options, rows * length, inner, outer, transposed=way == "forward")
            rates[f"rate, {rows * length} x {inner} x {outer}, {way}"] = rate
            seconds += work / (rate * 1e9)
            operations += work
    return {"rate": operations / seconds / 1e9, "fastest": max(rates.values()), **rates}


def _rate(options: Options, n: int, inner: int, outer: int, *, transposed: bool = False) -> float:
    """Billions of operations a second of `[n, inner] @ [inner, outer]`, the median of repeats."""
    dtype, generator = DTYPES[options.dtype], torch.Generator().manual_seed(0)
    shape = (outer, inner) if transposed else (inner, outer)
    left = torch.randn(n, inner, generator=generator).to(options.device, dtype)
    right = torch.randn(shape, generator=generator).to(options.device, dtype)
    right = right.T if transposed else right
    # Short products are repeated within a measurement: 1e10 operations are well above the clock.
    times = 1 if options.toy else max(1, round(1e10 / (2 * n * inner * outer)))

    def product() -> None:
        for _ in range(times):
            left @ right

    seconds = sorted(timed(product, options, workload.synchronizer(options)))
    return times * 2 * n * inner * outer / seconds[len(seconds) // 2] / 1e9


def checks(options: Options) -> Sequence[Check]:
    """The count from parameters is that of the products that torch saw, attention's left out."""
    found = []
    # torch counts this product only where it is not in place.
    in_place: dict[Any, Any] = {
        torch.ops.aten.addmm_: lambda _, left, right, **_rest: 2 * left[0] * left[1] * right[1]
    }
    for name, (experts, cached) in STEPS.items():
        # As one operation of torch's own, attention's scores can be told from other products.
        step = prepare(options, experts, cached, attention="sdpa")
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            step.loss().backward()
        seen = counter.get_flop_counts()["Global"]
        products = sum(count for op, count in seen.items() if "attention" not in str(op))
        found.append(
            Check(
                f"operations of a {name}, counted / seen by torch",
                abs(step.operations / products - 1),
                0.05,
            )
        )
    return found


def rows(samples: Samples) -> Sequence[Row]:
    squares, own = samples.values(MACHINE, "rate"), samples.values(OWN, "fastest")
    machine = [max(pair) for pair in zip(squares, own, strict=True)]
    found = [
        row(
            [a / b for a, b in zip(samples.values(name, "rate"), machine, strict=True)],
            f"fraction of the machine's measured matrix-product rate, {name}",
            aim=0.6,
            direction="at least",
        )
        for name in STEPS
    ]
    found += [
        samples.ratio(
            name,
            OWN,
            f"fraction of the rate of the model's own products, {name}",
            metric="rate",
            direction="at least",
        )
        for name in STEPS
    ]
    return found


if __name__ == "__main__":
    arms: dict[str, Callable[[Options], Mapping[str, Any]]] = {MACHINE: run_squares, OWN: run_own}
    for step_name, chosen_step in STEPS.items():
        arms[step_name] = lambda options, chosen=chosen_step: run_step(options, *chosen)
    main(
        Benchmark(
            name="matmul_rate",
            title="Rate of matrix products: the machine's, and what a training step reaches",
            compared="the machine's rate, the fastest of some large square products and of the "
            "model's own shapes, and the mean over those shapes, against a whole training step "
            "(forward, backward, fused AdamW) on 4 rows of 256 tokens, rank 8, all-linear: "
            "eight experts with every position trained, without and with the trunk cache, and one "
            "expert learning from the second half of each row. Operations are those of the "
            "matrices, without attention's scores",
            arms=arms,
            rows=rows,
            checks=checks,
            metric=("rate", "billion operations a second"),
            rounds=3,
            theirs=(MACHINE, OWN),
            defaults=Options(warmup=2, repeats=6),
        )
    )
