"""A training step through the router against one PEFT LoRA and against PEFT's X-LoRA.

python benchmarks/training_step.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import peers
import torch
import workload
from harness import Benchmark, Check, Options, Row, Samples, main, timed
from reference import Merged
from torch import Tensor, nn

from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.trunk import trunk_states
from dylora_moe.model.dylora_moe import DyLoRAMoE

EXPERTS = 8
KINDS = workload.KINDS


def run_peft(options: Options, targets: str) -> Mapping[str, Any]:
    """One LoRA on all blocks, as people use it."""
    base = workload.load_stock(options)
    model = workload.peft_lora(base, targets).train()
    ids = workload.tokens(options, base, *workload.batch_shape(options))
    return _measure(options, model, lambda: model(input_ids=ids, labels=ids, use_cache=False).loss)


def run_xlora(options: Options, targets: str) -> Mapping[str, Any]:
    """X-LoRA over eight adapters on all blocks, adapters and gate learning."""
    base = workload.load_stock(options)
    model = peers.xlora(base, EXPERTS, targets, trainable=True).train()
    ids = workload.tokens(options, base, *workload.batch_shape(options))
    return _measure(options, model, lambda: model(input_ids=ids, labels=ids, use_cache=False).loss)


def run_ours(options: Options, targets: str, *, cached: bool) -> Mapping[str, Any]:
    """Eight experts in dense mixture by the router; all of them and the gate learn."""
    base = workload.load(options)
    model = workload.ours(base, EXPERTS, targets)
    model.experts.set_trainable(model.experts.names)
    model.train()
    batch = _batch(options, model)
    states = trunk_states(base, batch)
    workload.require_dense(model, states.features)
    trunk = states if cached else None

    def loss() -> Tensor:
        output = model(
            input_ids=batch["input_ids"],
            labels=batch["input_ids"],
            prompt_mask=batch["prompt_mask"],
            trunk=trunk,
            loss_only=True,
        )
        assert output.loss is not None
        return output.loss

    return _measure(options, model, loss)


def checks(options: Options) -> Sequence[Check]:
    """One expert is one PEFT LoRA on the same blocks; eight are the base with them merged."""
    found = []
    for targets in KINDS:
        found += _mixture_checks(options, targets)
        base = workload.load(options, "fp32")
        model = workload.ours(base, 1, targets)
        model.experts.set_trainable(model.experts.names)
        batch = _batch(options, model)
        ids, mask = batch["input_ids"], batch["prompt_mask"]
        gates = Gates.only("expert_0", len(ids), base.device)
        # A step in the same form as it is measured, the trunk's cache included.
        trunk = trunk_states(base, batch)
        output = model(
            input_ids=ids,
            labels=ids,
            prompt_mask=mask,
            trunk=trunk,
            gates=gates,
            loss_only=True,
        )
        output.loss.backward()
        grads = {n: p.grad.clone() for n, p in model.experts.parameters_of("expert_0").items()}
        state = model.experts.state("expert_0")
        model.experts.unload()
        stock = workload.load_stock(options, "fp32")
        reference = workload.peft_lora(stock, targets, blocks=base.anatomy.adapted_blocks)
        own = {n.replace(".default", ""): p for n, p in reference.named_parameters()}
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)
        theirs = reference(input_ids=ids, labels=ids, use_cache=False)
        theirs.loss.backward()
        difference = workload.largest(output.loss.detach(), theirs.loss.detach())
        found.append(Check(f"loss, {targets}, against PEFT on the same blocks", difference, 1e-4))
        scale = max(float(own[n].grad.abs().max()) for n in grads)
        worst = max(workload.largest(grad, own[n].grad) for n, grad in grads.items()) / scale
        found.append(Check(f"gradient, {targets}, relative to the largest", worst, 1e-3))
    return found


def _mixture_checks(options: Options, targets: str) -> list[Check]:
    """The loss of eight experts with given weights, with the trunk's cache and without."""
    base = workload.load(options, "fp32")
    model = workload.ours(base, EXPERTS, targets)
    batch = _batch(options, model)
    ids = batch["input_ids"]
    generator = torch.Generator().manual_seed(3)
    weights = torch.rand(len(ids), EXPERTS, generator=generator).softmax(-1).to(base.device)
    gates = Gates(model.experts.names, weights)
    losses = {}
    for words, trunk in (("", None), (", trunk cache", trunk_states(base, batch))):
        output = model(**batch, labels=ids, trunk=trunk, gates=gates, loss_only=True)
        losses[words] = output.loss.detach()
    states = {name: model.experts.state(name) for name in model.experts.names}
    model.experts.unload()
    truth = Merged(workload.load_stock(options, "fp32"), states).loss(ids, weights)
    return [
        Check(
            f"loss, {targets}, {EXPERTS} experts with given weights{words}, against deltas merged "
            "into the base",
            workload.largest(loss, truth),
            1e-4,
        )
        for words, loss in losses.items()
    ]


def rows(samples: Samples) -> Sequence[Row]:
    found = []
    for targets in KINDS:
        ours, cached = f"routed, {targets}", f"routed, trunk cache, {targets}"
        peft, xlora = f"PEFT LoRA, {targets}", f"X-LoRA, {targets}"
        found += [
            samples.ratio(
                ours,
                peft,
                f"training step through the router, 8 experts / one PEFT LoRA, {targets}",
                must=0.95,
                aim=0.90,
            ),
            samples.ratio(
                cached,
                peft,
                f"training step with the trunk cache, 8 experts / one PEFT LoRA, {targets}",
                must=0.85,
                aim=0.80,
            ),
            samples.ratio(
                cached,
                xlora,
                f"training step with the trunk cache / PEFT X-LoRA, 8 experts, {targets}",
                must=0.33,
                aim=0.25,
            ),
            samples.ratio(
                ours,
                xlora,
                f"training step through the router, no trunk cache / PEFT X-LoRA, {targets}",
            ),
        ]
    return found


def _batch(options: Options, model: DyLoRAMoE) -> dict[str, Tensor]:
    count, length = workload.batch_shape(options)
    ids = workload.tokens(options, model.base, count, length)
    # The first half of each row is its prompt: what routing pools over.
    mask = torch.arange(length, device=ids.device).expand_as(ids) < length // 2
    return {"input_ids": ids, "prompt_mask": mask}


def _measure(options: Options, model: nn.Module, loss: Callable[[], Tensor]) -> Mapping[str, Any]:
    learned: Iterable[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = timed(step, options, workload.synchronizer(options))
    return {"seconds": seconds, "peak_memory": workload.peak_memory(options)}


ARMS = workload.by_targets(
    {
        "routed": partial(run_ours, cached=False),
        "routed, trunk cache": partial(run_ours, cached=True),
        "PEFT LoRA": run_peft,
        "X-LoRA": run_xlora,
    }
)


if __name__ == "__main__":
    main(
        Benchmark(
            name="training_step",
            title="Training step, 4 rows of 256 tokens, rank 8, every position trained",
            compared="ours: 8 experts on the blocks above the tap (8 to 29 of 30) in dense mixture "
            "by the router, all experts and the gate learn; PEFT: one LoRA, and X-LoRA over 8 with "
            "adapters and gate learning, on all blocks; AdamW (fused), no padding, checkpointing "
            "off on every side; PEFT keeps its adapters and their products in fp32, as it makes "
            "them, ours compute in the base's bf16 over fp32 masters; X-LoRA is in bf16, without "
            "which its gate would not run",
            arms=ARMS,
            rows=rows,
            checks=checks,
            rounds=3,
            theirs=[f"{name}, {kind}" for kind in KINDS for name in ("PEFT LoRA", "X-LoRA")],
            defaults=Options(warmup=2, repeats=6),
        )
    )
