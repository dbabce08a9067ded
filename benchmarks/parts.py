"""What the parts of a step cost by themselves: the small measurements behind choices in the code.

python benchmarks/parts.py                                       # all tables
python benchmarks/parts.py attention low-rank                    # some of them
python benchmarks/parts.py update --data path/to/skills          # where an update's time goes

Prints tables, milliseconds, medians of repeats in one process: worth their order, not their digits.
No goals, nothing written; what they decided stands in docs/lab-log.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import skill_rows
import torch
import workload
from harness import Options
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from dylora_moe.experts.products import add_by_row, gathered
from dylora_moe.foundation.attention import grouped_attention
from dylora_moe.foundation.lean import _RmsNorm
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.model.head import answer_losses_of
from dylora_moe.training.rows import Rows

BF16 = torch.bfloat16
LAYERS = ((576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576))
"""Inputs and outputs of the linear layers of a block of SmolLM2-135M."""


def milliseconds(run: Callable[[], Any], repeats: int = 15) -> float:
    """The median; the first repeats, in which kernels are made, hardly weigh."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def attention(options: Options) -> Table:
    """Forward and backward of torch's fused attention and of plain products."""
    table = _table(
        "attention, 9 heads in 3 groups, forward and backward, ms",
        "rows x tokens",
        *(f"{whose} {way}" for whose in ("torch", "ours") for way in ("fwd", "bwd")),
    )
    for rows, tokens in ((8, 16), (8, 32)) if options.toy else ((8, 32), (8, 72), (4, 256)):
        table.add_row(f"{rows} x {tokens}", *_attention(rows, tokens))
    return table


def _attention(rows: int, tokens: int) -> list[str]:
    layer = nn.Module()
    layer.num_key_value_groups = 3  # type: ignore[assignment]
    query, key, value = (
        torch.randn(rows, heads, tokens, 64, dtype=BF16, requires_grad=True) for heads in (9, 3, 3)
    )
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril().expand(rows, 1, -1, -1)
    added = torch.zeros(seen.shape, dtype=BF16).masked_fill(~seen, torch.finfo(BF16).min / 2)
    times = []
    for mask in (seen, added):  # A boolean mask goes to torch's kernel.
        run = partial(grouped_attention, layer, query, key, value, mask)
        loss = run()[0].sum()
        times += [milliseconds(run), milliseconds(partial(loss.backward, retain_graph=True))]
    return [f"{one:.2f}" for one in times]


def head(options: Options) -> Table:
    """The loss over the whole vocabulary, forward and backward, in three forms."""
    table = _table("loss at the head, ms", "operations", "torch's fused", "ours")
    vocabulary, count = (512, 16) if options.toy else (49152, 185)
    layer = nn.Linear(576, vocabulary, bias=False, dtype=BF16).requires_grad_(False)
    x = torch.randn(count, 576, dtype=BF16, requires_grad=True)
    targets = torch.randint(vocabulary, (count,))
    fused = torch.nn.LinearCrossEntropyOptions()
    forms: Sequence[Callable[[], Tensor]] = (
        lambda: functional.cross_entropy(layer(x).float(), targets, reduction="none"),
        lambda: functional.linear_cross_entropy(
            x, layer.weight, targets, reduction="none", options=fused
        ),
        lambda: answer_losses_of(x, layer, targets).losses,
    )
    found = [milliseconds(lambda f=form: f().sum().backward(), 5) for form in forms]
    table.add_row(*(f"{one:.0f}" for one in found))
    return table


def norm(options: Options) -> Table:
    """RMSNorm of 8 x 72 x 576, forward and backward."""
    table = _table("norm, ms", "transformers' operations", "torch's rms_norm", "ours")
    x = torch.randn(8, 16 if options.toy else 72, 576, dtype=BF16, requires_grad=True)
    weight = torch.ones(576, dtype=BF16)

    def operations() -> Tensor:
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(BF16)

    forms: Sequence[Callable[[], Tensor]] = (
        operations,
        lambda: functional.rms_norm(x, (576,), weight, 1e-5),
        lambda: _RmsNorm.apply(x, weight, 1e-5),
    )
    found = [milliseconds(lambda f=form: f().sum().backward(), 50) for form in forms]
    table.add_row(*(f"{one:.2f}" for one in found))
    return table


def low_rank(options: Options) -> Table:
    """The low-rank products of a decode step of 22 blocks, each layer's matrices met once."""
    table = _table("low-rank products of a decode step, ms", "tokens", "rank", "bf16", "fp32")
    for tokens, rank in ((1, 8), (1, 64), (8, 8), (8, 64)):
        times = []
        for dtype in (BF16, torch.float32):
            layers = [
                (
                    torch.randn(tokens, d_in, dtype=BF16),
                    torch.randn(rank, d_in, dtype=dtype),
                    torch.randn(rank, d_out, dtype=dtype),
                    torch.randn(tokens, d_out, dtype=BF16),
                )
                for _ in range(1 if options.toy else 22)
                for d_in, d_out in LAYERS
            ]
            gate = torch.rand(tokens, rank, dtype=dtype)
            times.append(milliseconds(lambda s=layers, g=gate: _step(s, g)))
        table.add_row(str(tokens), str(rank), *(f"{one:.1f}" for one in times))
    return table


def _step(layers: Sequence[tuple[Tensor, ...]], gate: Tensor) -> None:
    for x, down, up, result in layers:
        hidden = functional.linear(x.to(down.dtype), down) * gate
        if up.dtype == result.dtype:
            result.addmm_(hidden, up)
        else:
            result.add_(hidden @ up)


def sparse(options: Options) -> Table:
    """8 rows on 8 experts of rank 8: stacked, by row, one row after the other, grouped."""
    table = _table("8 rows on 8 experts, ms", "tokens", "stacked", "by row", "in turn", "grouped")
    experts, rank, width = 8, 8, 576
    for tokens in (1, 16 if options.toy else 256):
        x, result = (torch.randn(experts, tokens, width, dtype=BF16) for _ in range(2))
        downs, ups = (torch.randn(experts, rank, width, dtype=BF16) for _ in range(2))
        all_downs, all_ups = downs.flatten(0, 1), ups.flatten(0, 1)
        gate = torch.eye(experts, dtype=BF16).repeat_interleave(rank, 1)[:, None]
        own = torch.arange(experts)[:, None]
        parts = gathered(downs, ups, own, torch.ones(experts, 1, dtype=BF16))
        ends = torch.arange(1, experts + 1, dtype=torch.int32) * tokens

        def stacked(x=x, y=result, a=all_downs, b=all_ups, g=gate) -> None:
            y.view(-1, width).addmm_((functional.linear(x, a) * g).flatten(0, 1), b)

        def in_turn(x=x, y=result, a=downs, b=ups) -> None:
            for row in range(experts):
                y[row].addmm_(functional.linear(x[row], a[row]), b[row])

        def grouped(x=x, y=result, a=downs, b=ups, e=ends) -> None:
            hidden = functional.grouped_mm(x.flatten(0, 1), a.transpose(1, 2), offs=e)
            y.view(-1, width).add_(functional.grouped_mm(hidden, b, offs=e))

        def by_row(x=x, y=result, p=parts) -> None:
            add_by_row(y, x, *p, in_place=True)

        found = [milliseconds(form) for form in (stacked, by_row, in_turn, grouped)]
        table.add_row(str(tokens), *(f"{one:.3f}" for one in found))
    return table


def update(options: Options) -> Table:
    """Where the time of an update of eight rows goes, operation by operation, and its speed."""
    base = workload.load(options)
    rows = skill_rows.encoded(options, base).train
    model = workload.ours(base, 1)
    model.experts.set_trainable(model.experts.names)
    model.train()
    cached = Rows(tuple(rows), TrunkCache(base, rows))
    optimizer = torch.optim.AdamW(model.experts.trainable_parameters("expert_0"), fused=True)
    pad = base.tokenizer.pad_token_id
    batches = [range(start, start + 8) for start in range(0, len(rows) - 8, 8)][:8]

    def step(batch: range) -> None:
        inputs, trunk = cached.batch(batch, pad_id=pad, device=base.device)
        model(**inputs, trunk=trunk, expert="expert_0", loss_only=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for batch in batches:
        step(batch)
    taken = sum(
        min(milliseconds(lambda b=batch: step(b), 1) for _ in range(3)) for batch in batches
    )
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # It tells of its start and end otherwise.
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for batch in batches:
            step(batch)
    tokens = sum(cached.lengths[row] for batch in batches for row in batch)
    table = _table(
        f"an update: {taken / len(batches):.0f} ms, {tokens / len(batches):.0f} tokens, "
        f"{1000 * tokens / taken:.0f} a second (best of three)",
        "operation",
        "ms",
        "calls",
    )
    own = sorted(seen.key_averages(), key=lambda one: -one.self_cpu_time_total)
    for one in own[:14]:
        each = one.self_cpu_time_total / 1000 / len(batches)
        table.add_row(one.key[:60], f"{each:.1f}", str(one.count // len(batches)))
    return table


PARTS: Mapping[str, Callable[[Options], Table]] = {
    "attention": attention,
    "head": head,
    "norm": norm,
    "low-rank": low_rank,
    "sparse": sparse,
    "update": update,
}


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def say(table: Table) -> None:
    """Prints a table below its title, which may be wider than it."""
    console = Console()
    console.print(f"\n{table.title}", soft_wrap=True)
    table.title = None
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of: {', '.join(PARTS)}; all where none is named")
    parser.add_argument(
        "--data", default=None, help="folder of skills; the sample stream's if none"
    )
    parser.add_argument("--toy", action="store_true", help="tiny sizes: does it run?")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.parts if name not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are: {', '.join(PARTS)}")
    given = Options(toy=arguments.toy, data=arguments.data)
    for name in arguments.parts or PARTS:
        say(PARTS[name](given))
