"""Folders of PEFT LoRA adapters: what stock PEFT wrote, and writing what it reads.

Knows the configuration and which kinds of LoRA the mixture can compute; knows no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from dylora_moe.errors import ExpertError
from dylora_moe.experts.adapter_tensors import (
    WEIGHTS_NAME,
    Shape,
    read_packed,
    read_shapes,
    weights_file,
)
from dylora_moe.experts.packed import Layout, Packed

CONFIG_NAME = "adapter_config.json"

_INITS_OF_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
"""Initialisations that changed the base's own weights: their adapters fit no frozen base."""

_VARIANTS = (
    ("use_dora", "DoRA"),
    ("use_qalora", "QALoRA"),
    ("use_bdlora", "block-diagonal LoRA"),
    ("alora_invocation_tokens", "activated LoRA"),
    ("arrow_config", "Arrow routing"),
    ("velora_config", "VeLoRA"),
    ("monteclora_config", "MonteCLoRA"),
    ("kasa_config", "KaSA"),
    ("lora_bias", "a bias in lora_B"),
    ("trainable_token_indices", "trained token embeddings"),
    ("target_parameters", "adapted bare parameters"),
    ("layer_replication", "replicated layers"),
    ("megatron_config", "Megatron layers"),
)


@dataclass(frozen=True)
class Adapter:
    """What a folder says it holds.

    Attributes:
        config: PEFT's configuration.
        shapes: path of the adapted module to the shapes of its `lora_A` (`[rank, in]` in a sound
            file) and `lora_B` (`[out, rank]`).
    """

    config: LoraConfig
    shapes: Mapping[str, tuple[Shape, Shape]]

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each adapted module."""
        return {path: down[0] for path, (down, _) in self.shapes.items()}


@dataclass(frozen=True, eq=False)
class StoredExpert:
    """An expert in a folder whose files never change, known without its numbers.

    Attributes:
        folder: with PEFT's two files.
        config: this base's configuration of it.
        layout: shapes of its matrices.
        check: called with the file of the numbers before each reading; raises if it is damaged.
    """

    folder: Path
    config: LoraConfig
    layout: Layout
    check: Callable[[Path], None] | None = None

    def read(self) -> Packed:
        """The numbers, on the CPU.

        Raises:
            ExpertError: the file is damaged (or what `check` raises).
        """
        file = weights_file(self.folder)
        if self.check is not None:
            self.check(file)
        return read_packed(file, self.layout)


def read_header(folder: Path) -> Adapter:
    """Reads what a PEFT LoRA adapter is, without its numbers.

    Raises:
        ExpertError: it is not an adapter, is truncated, or is of a kind that a mixture cannot
            compute (another method than LoRA, DoRA, trained heads or embeddings, ...).
    """
    file = weights_file(folder)
    config = _read_config(folder)
    _check_kind(config, folder)
    return Adapter(config, read_shapes(file))


def check_adapter(folder: Path) -> None:
    """Reads an adapter whole, numbers too; whether it fits a base is not asked.

    Raises:
        ExpertError: as `read_header`, or numbers that are damaged or not finite.
    """
    shapes = read_header(folder).shapes
    sites = [(path, down, up) for path, (down, up) in shapes.items() if len(down) == len(up) == 2]
    layout = Layout(tuple((path, down[0], down[1], up[0]) for path, down, up in sites))
    read_packed(weights_file(folder), layout)


def write_adapter(
    folder: Path, config: LoraConfig, state: Mapping[str, Tensor], model_card: str | None
) -> None:
    """Writes a folder that stock PEFT's `PeftModel.from_pretrained` reads.

    Args:
        folder: is made; files of the same names are replaced.
        config: written as `adapter_config.json`, for inference.
        state: tensors under the file's own names (`key_a`, `key_b`).
        model_card: Markdown for `README.md`; none where None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().to("cpu").contiguous() for key, value in state.items()}
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    body = json.dumps(config_as_json(config) | {"inference_mode": True}, indent=2, sort_keys=True)
    (folder / CONFIG_NAME).write_text(body + "\n", encoding="utf-8")
    if model_card is not None:
        (folder / "README.md").write_text(model_card, encoding="utf-8")


def config_as_json(config: LoraConfig) -> dict[str, Any]:
    """PEFT's configuration as JSON values: sets as sorted lists, enums as their names."""
    values: dict[str, Any] = config.to_dict()
    plain = {
        key: sorted(value) if isinstance(value, set | frozenset) else value
        for key, value in values.items()
    }
    result: dict[str, Any] = json.loads(json.dumps(plain))
    return result


def _read_config(folder: Path) -> LoraConfig:
    file = folder / CONFIG_NAME
    if not file.is_file():
        raise ExpertError(f"{folder} holds no {CONFIG_NAME}; give a folder that PEFT wrote")
    try:
        method = json.loads(file.read_text(encoding="utf-8"))["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ExpertError(f"{file} is damaged ({error!r}); copy it again") from error
    if method != "LORA":
        raise ExpertError(f"{file} is of PEFT method {method}; only LORA adapters can be experts")
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except (TypeError, ValueError) as error:
        raise ExpertError(f"{file} cannot be read by this PEFT ({error}); upgrade peft") from error
    assert isinstance(config, LoraConfig)
    return config


def _check_kind(config: LoraConfig, folder: Path) -> None:
    if config.modules_to_save:
        raise ExpertError(
            f"{folder} trained whole modules beside LoRA ({', '.join(config.modules_to_save)}); "
            "experts share a frozen head and embedding: train it again without modules_to_save"
        )
    if config.bias != "none":
        raise ExpertError(
            f"{folder} trained biases of the base (bias={config.bias!r}); train it with bias='none'"
        )
    for name, words in _VARIANTS:
        if getattr(config, name, None):
            raise ExpertError(f"{folder} uses {words} ({name}); only plain LoRA can be an expert")
    how = config.init_lora_weights
    if isinstance(how, str) and how.lower().startswith(_INITS_OF_THE_BASE):
        raise ExpertError(
            f"{folder} was initialised by {how}, which changed the base's weights; save it as "
            "plain LoRA first (PEFT's path_initial_model_for_weight_conversion)"
        )
