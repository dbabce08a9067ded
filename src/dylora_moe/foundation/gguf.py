"""Keeps a converted copy of a GGUF file in the user's cache, since reading one takes long.

Knows files and the format; knows nothing of anatomy or devices. The copy is bf16 whatever the
machine computes in, so that a base is the same weights everywhere.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
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

from dylora_moe.errors import BaseModelError, StorageFullError
from dylora_moe.foundation.quiet import quiet

MANIFEST = "manifest.json"
_FORMAT = 1


def cache_folder() -> Path:
    """`$DYLORA_CACHE`, else `$XDG_CACHE_HOME/dylora`, else `~/.cache/dylora`."""
    own = os.environ.get("DYLORA_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "dylora"


def converted(file: Path, cache: Path | None = None, *, fresh: bool = False) -> Path:
    """A folder with the GGUF file's model and tokenizer in the format of transformers.

    Converted on the first call (staged, synced, renamed) and afterwards taken from the cache,
    every file checked by its SHA-256; a damaged copy is made again.

    Raises:
        BaseModelError: the file is not a GGUF file that transformers reads, or the cache cannot
            be written.
        StorageFullError: no room for the copy.
    """
    try:
        key = f"{file.stem}-{_sha256(file)[:16]}-v{_FORMAT}"
        target = (cache or cache_folder()) / "bases" / key
        if not fresh and _whole(target):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".staged-", dir=target.parent) as stage:
            staged = Path(stage) / "copy"
            _convert(file, staged)
            _seal(staged)
            _put(staged, target)
    except (OSError, SafetensorError) as error:
        if _disk_is_full(error):
            raise StorageFullError(
                f"no room to convert {file.name}; free some, or point DYLORA_CACHE elsewhere"
            ) from error
        raise BaseModelError(
            f"the converted copy of {file.name} cannot be kept: {error}; point DYLORA_CACHE to a "
            "folder that can be written"
        ) from error
    return target


def _disk_is_full(error: OSError | SafetensorError) -> bool:
    # safetensors keeps the system's error as text only.
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(f"os error {code}" in str(error) for code in (errno.ENOSPC, errno.EDQUOT))


def _convert(file: Path, folder: Path) -> None:
    with quiet():
        model, tokenizer = _read(file)
        _dequantised(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _read(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    options: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.bfloat16, **options)
    except Exception as error:
        # The reader has no error of its own: struct, numpy and Unicode errors come through.
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BaseModelError(
            f"{file} cannot be read as a GGUF model: {line}; it may be damaged or of an "
            "architecture that transformers does not read from GGUF"
        ) from error
    return model, tokenizer


def _dequantised(model: PreTrainedModel) -> None:
    """Clears the marks of quantisation, with which neither saving nor Trainer accept the model."""
    vars(model.config).pop("quantization_config", None)
    for mark in ("is_quantized", "hf_quantizer", "quantization_method"):
        vars(model).pop(mark, None)


def _seal(folder: Path) -> None:
    """Syncs every file and writes their hashes down."""
    hashes = {}
    for path in sorted(folder.iterdir()):
        hashes[path.name] = _sha256(path)
        _sync(path)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps(hashes, indent=1))
    _sync(manifest)
    _sync(folder)


def _put(staged: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    try:
        staged.rename(target)
    except OSError:
        # Another process was first: its copy is as good, if it is whole.
        if not _whole(target):
            raise
    _sync(target.parent)


def _whole(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / MANIFEST).read_text())
        return bool(hashes) and all(_sha256(folder / n) == value for n, value in hashes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
