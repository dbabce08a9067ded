"""PEFT's ways to have several adapters, as its documentation sets them up: X-LoRA, with adapters on
disk and a classifier over the model, and batches that name an adapter for each row.

Knows PEFT; knows nothing of ours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import workload
from torch import Tensor, nn

from dylora_moe.foundation.base import Base
from dylora_moe.foundation.quiet import quiet
from dylora_moe.text.batching import collate, length_grouped
from dylora_moe.text.template import Encoded
from dylora_moe.training.phases import consolidation

RATE = consolidation().learning_rate
"""Of an adapter's training on either side."""
PACKED = 512
"""Tokens of a packed sequence: about what eight padded rows come to."""


def adapters(base: Base, count: int, targets: str, folder: Path) -> dict[str, str]:
    """Random PEFT adapters on disk, by name; the base is stock again afterwards."""
    found = {}
    for index in range(count):
        model = workload.peft_lora(base, targets, seed=index + 1)
        with quiet():
            model.save_pretrained(str(folder / str(index)))  # type: ignore[operator]
            model.unload()  # type: ignore[operator]
        if hasattr(base.model, "peft_config"):
            del base.model.peft_config
        # PEFT 0.21 loads them under their number, whatever they are called here.
        found[str(index)] = str(folder / str(index))
    return found


def lora_pool(
    base: Base, count: int, targets: str, *, blocks: Sequence[int] | None = None
) -> nn.Module:
    """One PEFT model with `count` adapters, for batches that name one of them for each row.

    Args:
        base: stock.
        count: adapters, called as `workload.names` says.
        targets: `all-linear` or `attention`.
        blocks: those that are adapted; all where None.
    """
    from peft import LoraConfig, get_peft_model

    def config() -> LoraConfig:
        return LoraConfig(
            r=workload.RANK,
            lora_alpha=workload.ALPHA,
            target_modules=workload.TARGETS[targets],
            layers_to_transform=list(blocks) if blocks is not None else None,
            task_type="CAUSAL_LM",
        )

    first, *others = workload.names(count)
    with quiet():
        model: nn.Module = get_peft_model(base.model, config(), adapter_name=first)
        for name in others:
            model.add_adapter(name, config())  # type: ignore[operator]
    generator = torch.Generator().manual_seed(1)
    workload.randomize((p for n, p in model.named_parameters() if "lora_" in n), generator)
    return model.eval()


def copy_into(model: nn.Module, states: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Writes experts into a PEFT model's adapters.

    Args:
        model: with adapters on at least the same blocks.
        states: by the adapter's name there, matrices under their names in an adapter file.
    """
    own = dict(model.named_parameters())
    with torch.no_grad():
        for adapter, state in states.items():
            for name, value in state.items():
                own[f"{name.removesuffix('.weight')}.{adapter}.weight"].copy_(value)


def xlora(base: Base, count: int, targets: str, *, trainable: bool = False) -> nn.Module:
    """X-LoRA over `count` adapters on all blocks; its gate is as PEFT starts it."""
    from peft import XLoraConfig, get_peft_model

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = adapters(base, count, targets, Path(folder))
        base.model.config.use_cache = False
        config = XLoraConfig(
            task_type="CAUSAL_LM",
            hidden_size=base.anatomy.d_model,
            xlora_depth=1,
            adapters=paths,
            use_trainable_adapters=trainable,
        )
        with quiet():
            model: nn.Module = get_peft_model(base.model, config)
    _expect_xlora(model, count, trainable)
    # In bf16 the classifier would not meet the hidden states' dtype.
    return model.to(base.dtype)


def _expect_xlora(model: nn.Module, count: int, trainable: bool) -> None:
    """Ends the benchmark where X-LoRA is not what it is compared as."""
    lora = {n: p for n, p in model.named_parameters() if ".lora_A." in n or ".lora_B." in n}
    gate = [p for n, p in model.named_parameters() if "internal_xlora_classifier" in n]
    # ...q_proj.lora_A.<adapter>.weight
    there = {name.rsplit(".", 2)[-2] for name in lora}
    if len(there) != count:
        raise SystemExit(f"X-LoRA has adapters {sorted(there)} instead of {count}")
    if not gate or not all(p.requires_grad for p in gate):
        raise SystemExit("X-LoRA's gate does not learn")
    if any(p.requires_grad is not trainable for p in lora.values()):
        raise SystemExit(f"X-LoRA's adapters should {'' if trainable else 'not '}learn")


def import_sft() -> None:
    """Imports what `sft` needs, so that a clock that starts afterwards counts none of it."""
    for module, name in (
        ("datasets", "Dataset"),
        ("peft", "LoraConfig"),
        ("trl", "SFTConfig"),
        ("trl", "SFTTrainer"),
    ):
        # TRL loads its parts when they are first asked for.
        getattr(import_module(module), name)


def sft(
    base: Base,
    rows: Sequence[Encoded],
    folder: Path,
    *,
    epochs: float,
    packing: bool,
    blocks: Sequence[int] | None,
    seed: int = 0,
) -> tuple[nn.Module, float]:
    """TRL's SFTTrainer with PEFT on encoded rows: the loss on the answers, checkpointing off.

    Args:
        base: stock; it carries the adapter afterwards.
        rows: prompts and answers as our own training sees them, tokens ready.
        folder: TRL's output.
        epochs: over the rows.
        packing: best-fit packing to 512 tokens a sequence (as many tokens a step), or padding.
        blocks: blocks to adapt; all where None.
        seed: of order and adapter.

    Returns:
        The trained model, and the seconds of the loop alone, as TRL counts them.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTTrainer

    data = Dataset.from_dict(
        {
            "input_ids": [list(row.input_ids) for row in rows],
            "completion_mask": [[int(trained) for trained in row.trained] for row in rows],
        }
    )
    lora = LoraConfig(
        r=workload.RANK,
        lora_alpha=workload.ALPHA,
        target_modules=workload.TARGETS["all-linear"],
        layers_to_transform=list(blocks) if blocks is not None else None,
        task_type="CAUSAL_LM",
    )
    base.model.config.use_cache = False
    trainer = SFTTrainer(
        model=base.model,
        args=_sft_config(base, folder, epochs, packing, seed),
        train_dataset=data,
        processing_class=base.tokenizer,
        peft_config=lora,
    )
    with quiet():
        done = trainer.train()
    return trainer.model, float(done.metrics["train_runtime"])


@torch.no_grad()
def row_losses(
    model: nn.Module, base: Base, rows: Sequence[Encoded]
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Nats over each row's answer by any model's logits, and the answers' tokens."""
    model.eval()
    losses, tokens = [0.0] * len(rows), [0] * len(rows)
    for group in length_grouped([len(one) for one in rows], batch_size=16):
        found = collate([rows[index] for index in group], base.tokenizer.pad_token_id)
        batch = {name: value.to(base.device) for name, value in found.items()}
        labels = batch["labels"][:, 1:]
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = model(**inputs, use_cache=False).logits[:, :-1].float()
        each = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100
        ).view(labels.shape)
        for place, index in enumerate(group):
            losses[index] = float(each[place].sum())
            tokens[index] = int((labels[place] != -100).sum())
    return tuple(losses), tuple(tokens)


def _sft_config(base: Base, folder: Path, epochs: float, packing: bool, seed: int) -> Any:
    """TRL's settings: our own training's steps, rate and schedule."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=1 if packing else 8,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.01,
        max_length=PACKED if packing else None,
        packing=packing,
        completion_only_loss=True,
        gradient_checkpointing=False,
        bf16=base.dtype == torch.bfloat16,
        use_cpu=base.device.type == "cpu",
        save_strategy="no",
        logging_steps=50,
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )
