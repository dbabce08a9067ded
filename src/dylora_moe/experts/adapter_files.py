"""Folders of PEFT LoRA adapters: reading what stock PEFT wrote, writing what it reads.

Knows the file format and which kinds of LoRA the mixture can compute; knows no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import load_peft_weights
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dylora_moe.errors import ExpertError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
OLD_WEIGHTS_NAME = "adapter_model.bin"

KEY_PREFIX = "base_model.model."
"""What PEFT puts before a module's path in its files."""

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
    """What a folder holds.

    Attributes:
        config: PEFT's configuration.
        matrices: path of the adapted module to its `lora_A` `[rank, in]` and `lora_B`
            `[out, rank]`, in the file's dtype, on the CPU.
    """

    config: LoraConfig
    matrices: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each adapted module."""
        return {path: down.shape[0] for path, (down, _) in self.matrices.items()}


def key_a(path: str) -> str:
    """The name of a module's `lora_A` in an adapter file."""
    return f"{KEY_PREFIX}{path}.lora_A.weight"


def key_b(path: str) -> str:
    """The name of a module's `lora_B` in an adapter file."""
    return f"{KEY_PREFIX}{path}.lora_B.weight"


def weights_file(folder: Path) -> Path:
    """The file of the folder's tensors.

    Raises:
        ExpertError: the folder is not a PEFT adapter.
    """
    for name in (WEIGHTS_NAME, OLD_WEIGHTS_NAME):
        if (folder / name).is_file():
            return folder / name
    raise ExpertError(
        f"{folder} holds no {WEIGHTS_NAME}; give a folder that PEFT's save_pretrained wrote"
    )


def read_adapter(folder: Path) -> Adapter:
    """Reads a PEFT LoRA adapter without touching a model.

    Raises:
        ExpertError: it is not an adapter, is damaged, or is of a kind that a mixture cannot
            compute (another method than LoRA, DoRA, trained heads or embeddings, ...).
    """
    file = weights_file(folder)
    config = _read_config(folder)
    _check_kind(config, folder)
    try:
        tensors = load_peft_weights(str(folder), device="cpu")
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise ExpertError(
            f"{file} is damaged or truncated ({error}); copy it again from where it was trained"
        ) from error
    return Adapter(config, _pair(tensors, file))


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


def _pair(tensors: Mapping[str, Tensor], file: Path) -> dict[str, tuple[Tensor, Tensor]]:
    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    for key, value in tensors.items():
        path = key.removeprefix(KEY_PREFIX)
        if path.endswith(".lora_A.weight"):
            downs[path.removesuffix(".lora_A.weight")] = value
        elif path.endswith(".lora_B.weight"):
            ups[path.removesuffix(".lora_B.weight")] = value
        else:
            raise ExpertError(
                f"{file} holds {key}, which is no LoRA matrix of a linear layer; experts share a "
                "frozen head and embedding: train it again without them"
            )
    if not downs or downs.keys() != ups.keys():
        raise ExpertError(
            f"{file} lacks one of the two LoRA matrices of "
            f"{', '.join(sorted(downs.keys() ^ ups.keys())[:3]) or 'every layer'}; copy it again"
        )
    for path, down in downs.items():
        if not (torch.isfinite(down).all() and torch.isfinite(ups[path]).all()):
            raise ExpertError(f"{file} holds numbers that are not finite at {path}; copy it again")
    return {path: (downs[path], ups[path]) for path in sorted(downs)}
