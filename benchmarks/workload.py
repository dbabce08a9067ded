"""What the benchmarks work on: the base, our model with experts, and the peers', all made alike.

Every weight that an untrained adapter would have at zero is random here, since a path that loses
an adapter would otherwise look right. Knows models; measures nothing.
"""

from __future__ import annotations

import copy
import os
import string
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness import Arm, Options
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from dylora_moe.experts.manager import ExpertManager
from dylora_moe.foundation.base import DEFAULT_BASE, Base, load_base, wrap
from dylora_moe.foundation.placement import DTYPES
from dylora_moe.foundation.quiet import quiet
from dylora_moe.foundation.statistics import FeatureStatistics
from dylora_moe.foundation.trunk import trunk_states
from dylora_moe.model.dylora_moe import DyLoRAMoE
from dylora_moe.routing.router import DynamicHybridRouter
from dylora_moe.routing.rows import Row

RANK, ALPHA = 8, 16.0
_KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS = {
    "attention": list(_ATTENTION),
    # By name: PEFT's own "all-linear" cannot be kept to some of the blocks.
    "all-linear": [*_ATTENTION, "gate_proj", "up_proj", "down_proj"],
}
KINDS = ("all-linear", "attention")
"""The targets, in the order of the figures."""


def by_targets(arms: Mapping[str, Callable[[Options, str], Mapping[str, Any]]]) -> dict[str, Arm]:
    """An arm for each of `KINDS`, under its name and theirs, of each that takes the targets."""
    return {
        f"{name}, {targets}": lambda options, run=run, targets=targets: run(options, targets)
        for targets in KINDS
        for name, run in arms.items()
    }


def batch_shape(options: Options) -> tuple[int, int]:
    """Rows and tokens of a training batch."""
    return (2, 16) if options.toy else (4, 256)


def load_stock(options: Options, dtype: str | None = None) -> Base:
    """The base for peers and references: transformers' own model and nothing of ours in it."""
    # Read on a CPU, where no kernel of liger's takes the place of a function for the process.
    told = os.environ.get(_KERNELS)
    base = load(replace(options, device="cpu"), dtype)
    if told is None:
        # Nothing was multiplied yet, so what ours asks of oneDNN is not asked for the peers.
        os.environ.pop(_KERNELS, None)
    config = copy.deepcopy(base.model.config)
    # Made anew rather than stripped, so that nothing can be forgotten; the dtype is given and not
    # converted to, since rotary frequencies stay in fp32.
    model = AutoModelForCausalLM.from_config(config, dtype=base.dtype, attn_implementation="sdpa")
    model.load_state_dict(base.model.state_dict())
    model.generation_config = base.model.generation_config
    model = model.to(options.device).requires_grad_(False).eval()
    return replace(base, model=model, device=model.device)


def load(options: Options, dtype: str | None = None) -> Base:
    """SmolLM2-135M, or a random tiny Llama at toy size, as the product prepares it."""
    kind = dtype or options.dtype
    torch.manual_seed(0)
    if not options.toy:
        return load_base(DEFAULT_BASE, device=options.device, dtype=kind)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).to(device=options.device, dtype=DTYPES[kind])
    return wrap(model, toy_tokenizer(), name="toy")


def save_toy(folder: Path) -> Path:
    """The tiny Llama as a base on disk, for pools."""
    base = load(Options(toy=True), "fp32")
    with quiet():
        base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = ["<pad>", "<s>", "</s>", "<unk>", *sorted(set(string.printable))]
    made = Tokenizer(models.WordLevel({c: i for i, c in enumerate(letters)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def names(count: int) -> tuple[str, ...]:
    return tuple(f"expert_{index}" for index in range(count))


def ours(
    base: Base,
    count: int,
    targets: str = "all-linear",
    *,
    top_k: int = 2,
    mature: bool = False,
    means: Tensor | None = None,
    seed: int = 1,
) -> DyLoRAMoE:
    """Our model with random experts, each with a skill of its own in the router.

    Args:
        base: stock.
        count: experts.
        targets: `all-linear` or `attention`.
        top_k: of sparse inputs.
        mature: sparse routing; dense over all experts otherwise.
        means: of the skills' features, `[count, d_features]`, where it matters which inputs go
            where; random ones where None.
        seed: of the experts' weights.
    """
    manager = ExpertManager(base.model, base.anatomy)
    width = base.anatomy.d_features
    # A low temperature would starve most experts in the dense mixture of random skills.
    router = DynamicHybridRouter(
        width, top_k=top_k, temperature=1.0 if mature else 1e6, none_threshold=1e9
    )
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for name in names(count):
        manager.create_expert(name, rank=RANK, alpha=ALPHA, targets=targets)
        randomize(manager.parameters_of(name).values(), generator)
        drawn.append(torch.randn(width, generator=generator, dtype=torch.float64))
        # Making an expert takes the longer the more are in the layers: they come back together.
        manager.offload(name)
    manager.touch(names(count))
    add_skills(router, torch.stack(drawn) if means is None else means.double().cpu())
    router.set_maturity(dict.fromkeys(names(count), 1.0 if mature else 0.0))
    model = DyLoRAMoE(base, router, manager)
    model.eval()
    return model


def add_skills(router: DynamicHybridRouter, means: Tensor) -> None:
    """Gives the router a skill for each mean, `[count, d_features]`, named after its expert."""
    # One shared scatter: the router keeps the sum, so that thousands of skills are cheap to make.
    scatter = torch.eye(means.shape[1], dtype=torch.float64) * 64
    for index, (name, mean) in enumerate(zip(names(len(means)), means, strict=True)):
        statistics = FeatureStatistics(64, mean, scatter)
        if 0 < index < len(means) - 1:
            # As `add_expert` does it, less the refit, which only the last one's is needed of.
            router.table.add(Row(name, name), statistics)
            router.correction.add_row()
        else:
            router.add_expert(name, name, statistics)


def features(base: Base, ids: Tensor, prompt_mask: Tensor | None = None) -> Tensor:
    """What the router sees of the rows, `[rows, d_features]`; of whole rows where no mask is."""
    mask = torch.ones_like(ids).bool() if prompt_mask is None else prompt_mask
    return trunk_states(base, {"input_ids": ids, "prompt_mask": mask}).features


def require_dense(model: DyLoRAMoE, rows: Tensor) -> None:
    """Ends the benchmark where rows with these features do not get every expert in earnest."""
    with torch.no_grad():
        weights = model.router(rows).weights
    if float(weights.min()) <= 0.05:
        raise SystemExit(f"the rows were not routed densely: {weights.tolist()}")


def peft_lora(
    base: Base, targets: str = "all-linear", *, blocks: Sequence[int] | None = None, seed: int = 1
) -> nn.Module:
    """Stock PEFT LoRA on the base, on all blocks where none are named, with random weights."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=TARGETS[targets],
        layers_to_transform=list(blocks) if blocks is not None else None,
        task_type="CAUSAL_LM",
    )
    with quiet():
        model: nn.Module = get_peft_model(base.model, config)
    generator = torch.Generator().manual_seed(seed)
    randomize((p for n, p in model.named_parameters() if "lora_" in n), generator)
    return model


def randomize(parameters: Any, generator: torch.Generator) -> None:
    """Small random values everywhere, `B` too."""
    with torch.no_grad():
        for parameter in parameters:
            values = torch.randn(parameter.shape, generator=generator) * 0.02
            parameter.copy_(values)


def tokens(options: Options, base: Base, rows: int, length: int, seed: int = 2) -> Tensor:
    """Random token ids `[rows, length]` on the device, no special ones."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(8, base.model.config.vocab_size - 8, (rows, length), generator=generator)
    return ids.to(options.device)


def synchronizer(options: Options) -> Callable[[], None]:
    """Waits for the device."""
    return torch.cuda.synchronize if options.device == "cuda" else (lambda: None)


def peak_memory(options: Options) -> int:
    """Bytes at the peak: of the device, or of the process on a CPU."""
    if options.device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def largest(ours_: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference."""
    with suppress(RuntimeError):
        return float((ours_.float() - theirs.float()).abs().max())
    return float("inf")
