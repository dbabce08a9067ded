"""Tensors with a JSON header as one run of bytes in safetensors' format.

Knows the format; knows nothing of files, hashes or what the tensors mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from dylora_moe.errors import ArtifactError

_KEY = "dylora_moe"


def to_bytes(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """Tensors and header as safetensors bytes; the header lies in the format's own metadata."""
    plain = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    body: bytes = safetensors.torch.save(plain, metadata={_KEY: json.dumps(header)})
    return body


def from_bytes(body: bytes, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `to_bytes`, with a check that the header says `kind`.

    Raises:
        ArtifactError: the bytes are damaged, cut off, or of another kind.
    """
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(body)
        length = int.from_bytes(body[:8], "little")
        metadata = json.loads(body[8 : 8 + length]).get("__metadata__", {})
        header: dict[str, Any] = json.loads(metadata.get(_KEY, "{}"))
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(
            f"the stored {kind} cannot be read: {error}; go back to an earlier version "
            "with rollback"
        ) from error
    if header.get("kind") != kind:
        raise ArtifactError(
            f"the stored file holds {header.get('kind') or 'something foreign'}, not a {kind}; "
            "it was written by another program or put in another's place: restore it"
        )
    return tensors, header
