"""What a decode and a training step cost with 256 experts owned against 8, routed sparsely.

python benchmarks/many_experts.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import decoding
import torch
import workload
from harness import Benchmark, Check, Options, Row, Samples, main, timed
from reference import Merged
from torch import Tensor

from dylora_moe.foundation.base import Base
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.model.generation import generate

FEW = 8
CHOSEN = 2
"""Experts of each row."""


def run_decode(options: Options, count: int) -> Mapping[str, Any]:
    """Each row is routed to two experts of its own, spread over those there are."""
    base = workload.load(options)
    rows, _ = workload.batch_shape(options)
    prompts = workload.tokens(options, base, rows, decoding.context(options))
    model = _spread(base, prompts, count)
    weights = generate(model, prompts, max_new_tokens=1, do_sample=False).routing
    assert weights is not None
    _expect(weights.weights, rows * CHOSEN)
    found = decoding.time_steps(options, decoding.ours(model, prompts))
    return {
        "seconds": found["step"],
        "prefill": found["prefill"],
        "peak_memory": workload.peak_memory(options),
    }


def run_training(options: Options, count: int) -> Mapping[str, Any]:
    """Rows of one skill, mixed of its expert, which learns, and a mature one; the gate learns."""
    base = workload.load(options)
    batch = _batch(options, base)
    model = _learning(base, batch, count)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, fused=True)

    def step() -> None:
        _loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = timed(step, options, workload.synchronizer(options))
    return {"seconds": seconds, "peak_memory": workload.peak_memory(options)}


def checks(options: Options) -> Sequence[Check]:
    """Sparse among many is the chosen experts alone, in what it computes and in what it learns."""
    count = _many(options)
    base = workload.load(options, "fp32")
    text = workload.tokens(options, base, 4, 16)
    prompts, forced = text[:, :12], text[:, 12:]
    model = _spread(base, prompts, count)
    routing = generate(model, prompts, max_new_tokens=1, do_sample=False).routing
    assert routing is not None
    used = (routing.weights > 0).any(0).nonzero().flatten().tolist()
    states = {routing.experts[index]: model.experts.state(routing.experts[index]) for index in used}
    logits = decoding.record(decoding.ours(model, prompts), forced)
    model.experts.unload()
    merged = Merged(workload.load_stock(options, "fp32"), states)
    truth = merged.answers(prompts, forced, routing.weights[:, used])
    words = f"decode logits, {count} experts, against the chosen two of each row merged"
    found = [Check(words, workload.largest(logits, truth), 3e-4)]
    batch = {"input_ids": text, "prompt_mask": torch.ones_like(text).bool()}
    among_many = _gradients(base, batch, count)
    among_few = _gradients(base, batch, FEW)
    for part, ours in among_many.items():
        scale = float(among_few[part].abs().max())
        difference = workload.largest(ours, among_few[part]) / scale
        words = f"gradient of {part}, {count} experts against {FEW}, relative to the largest"
        found.append(Check(words, difference, 1e-3))
    return found


def rows(samples: Samples) -> Sequence[Row]:
    found = [
        samples.ratio(
            f"{what}, 256 experts",
            f"{what}, 8 experts",
            f"{what} step, 256 experts / 8 experts, sparse",
            must=1.10,
            aim=1.00,
        )
        for what in ("decode", "training")
    ]
    reading = samples.ratio(
        "decode, 256 experts",
        "decode, 8 experts",
        "reading 4 prompts of 256 tokens, 256 experts / 8 experts, sparse",
        metric="prefill",
    )
    return [*found, reading]


def _many(options: Options) -> int:
    return 24 if options.toy else 256


def _spread(base: Base, prompts: Tensor, count: int) -> DyLoRAMoE:
    """Two skills at the features of each prompt, all others far from any."""
    features = workload.features(base, prompts)
    means = _elsewhere(features, count)
    for row, feature in enumerate(features):
        first = row * count // len(features)
        means[first : first + CHOSEN] = feature
    return workload.ours(base, count, top_k=CHOSEN, mature=True, means=means)


def _learning(base: Base, batch: Mapping[str, Tensor], count: int) -> DyLoRAMoE:
    """Two skills at the features of the batch, of which the first one's expert learns."""
    features = workload.features(base, batch["input_ids"], batch["prompt_mask"])
    means = _elsewhere(features, count)
    means[:CHOSEN] = features.mean(0)
    model = workload.ours(base, count, top_k=CHOSEN, mature=True, means=means)
    with torch.no_grad():
        _expect(model.router(features).weights, CHOSEN)
    model.experts.set_trainable(model.experts.names[:1])
    return model.train()


def _elsewhere(features: Tensor, count: int) -> Tensor:
    """Random means that no row of the features is near to, `[count, d_features]`."""
    generator = torch.Generator().manual_seed(4)
    drawn = torch.randn(count, features.shape[1], generator=generator).to(features.device)
    centre = features.mean(0)
    radius = (features - centre).norm(dim=-1).max() / features.shape[1] ** 0.5
    return centre + (1 + 4 * radius) * drawn


def _expect(weights: Tensor, experts: int) -> None:
    """Ends the benchmark where the rows did not get their two experts at half each."""
    used = weights[:, (weights > 0).any(0)]
    halves = ((weights - 0.5).abs() < 0.1).sum(-1)
    if used.shape[1] != experts or bool((halves != CHOSEN).any()):
        raise SystemExit(f"the rows were routed to other experts than intended: {used.tolist()}")


def _batch(options: Options, base: Base) -> dict[str, Tensor]:
    count, length = workload.batch_shape(options)
    ids = workload.tokens(options, base, count, length)
    # The first half of each row is its prompt: what routing pools over.
    mask = torch.arange(length, device=ids.device).expand_as(ids) < length // 2
    return {"input_ids": ids, "prompt_mask": mask}


def _loss(model: DyLoRAMoE, batch: Mapping[str, Tensor]) -> Tensor:
    output = model(
        input_ids=batch["input_ids"],
        labels=batch["input_ids"],
        prompt_mask=batch["prompt_mask"],
        loss_only=True,
    )
    assert output.loss is not None
    return output.loss


def _gradients(base: Base, batch: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Of the expert that learns, and of the gate's rows of it and its neighbour."""
    model = _learning(base, batch, count)
    _loss(model, batch).backward()
    gradients = [p.grad for p in model.experts.trainable_parameters(model.experts.names[0])]
    expert = torch.cat([one.flatten() for one in gradients if one is not None])
    gate = model.router.correction.delta_W.grad
    assert gate is not None
    # Row 0 is that of no expert.
    found = {"the expert": expert, "the gate": gate[1 : 1 + CHOSEN].clone()}
    model.experts.unload()
    return found


def _arms() -> dict[str, Callable[[Options], Mapping[str, Any]]]:
    counts: dict[str, Callable[[Options], int]] = {"256": _many, "8": lambda o: FEW}
    found: dict[str, Callable[[Options], Mapping[str, Any]]] = {}
    for said, count in counts.items():
        found[f"decode, {said} experts"] = lambda o, c=count: run_decode(o, c(o))
        found[f"training, {said} experts"] = lambda o, c=count: run_training(o, c(o))
    return found


if __name__ == "__main__":
    main(
        Benchmark(
            name="many_experts",
            title="A step with 256 experts owned and with 8, 4 rows of 256 tokens, rank 8",
            compared="all experts mature, in every linear layer of the blocks above the tap (8 to "
            "29 of 30), on the device; every row is routed to two of them at half each. Decoding: "
            "within `generate`, greedy, KV cache of 257 to 288 tokens, the rows use 8 different "
            "experts on both sides, spread over those owned. Training: rows of one skill, mixed of "
            "the expert that learns and one other, the gate learns along, every position trained, "
            "AdamW (fused), checkpointing off; no padding",
            arms=_arms(),
            rows=rows,
            checks=checks,
            rounds=3,
            defaults=Options(warmup=2, repeats=4),
        )
    )
