"""What a pool is made with at `init`, and how it is brought to life again later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from dylora_moe.errors import ConfigError, PoolError
from dylora_moe.foundation import tensor_bytes
from dylora_moe.foundation.base import Base
from dylora_moe.foundation.own_prompts import write_own_prompts
from dylora_moe.foundation.trunk_cache import TrunkCache
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.watch import Watch
from dylora_moe.ports import ArtifactStore
from dylora_moe.records import Artifact
from dylora_moe.storage.pool_folder import Storage
from dylora_moe.text.template import Encoded, PromptFormat, encode_prompt

OWN_FEATURES = "own/features.safetensors"
_FEWEST = 32


@dataclass(frozen=True, eq=False)
class Own:
    """The base's own prompts and their tap features."""

    prompts: tuple[str, ...]
    features: Float[Tensor, "n d_features"]

    @classmethod
    def write(
        cls, base: Base, kind: str, system: str | None, count: int, seed: int, watch: Watch
    ) -> Own:
        """Lets the base write prompts and takes their features.

        Raises:
            ConfigError: too few prompts, or no such prompt format.
        """
        fmt = prompt_format(kind, system)
        if count < _FEWEST:
            raise ConfigError(
                f"{count} own prompts are too few to tell foreign input by; give {_FEWEST} or more"
            )
        watch.stage("own prompts", f"{count} written by the base")
        prompts = write_own_prompts(
            base, count, seed=seed, progress=lambda done, total: watch.progress(done, total, {})
        )
        rows = []
        for prompt in prompts:
            ids = tuple(encode_prompt(prompt, base.tokenizer, fmt))
            rows.append(Encoded(ids, (False,) * len(ids), len(ids), ""))
        return cls(tuple(prompts), TrunkCache(base, rows).features)

    def to_bytes(self) -> bytes:
        """Features as safetensors, the prompts in its header."""
        return tensor_bytes.to_bytes(
            {"features": self.features}, {"kind": "own", "prompts": list(self.prompts)}
        )


def prompt_format(kind: str, system: str | None) -> PromptFormat:
    """The pool's prompt format; ConfigError for a kind that is not known."""
    if kind == "plain":
        return PromptFormat("plain", system)
    if kind == "chat":
        return PromptFormat("chat", system)
    raise ConfigError(f"prompt format '{kind}' is unknown; choose 'plain' or 'chat'")


def read_own(artifacts: ArtifactStore, meta: Mapping[str, Any]) -> Tensor:
    """The features of `Own.to_bytes`.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    body = artifacts.open(Artifact(**meta["own"])).read_bytes()
    tensors, _ = tensor_bytes.from_bytes(body, "own")
    return tensors["features"]


def load_live(
    storage: Storage,
    meta: Mapping[str, Any],
    base: Base,
    own: Float[Tensor, "n d_features"],
    expert_memory: int | None = None,
) -> LivePool:
    """The pool in memory, empty yet; `expert_memory` is that of `LivePool`.

    Raises:
        ConfigError: memory for no expert.
        PoolError: the base is not the one the pool was made on.
    """
    if base.fingerprint != meta["fingerprint"]:
        raise PoolError(
            f"{storage.root} was made on another base than the {base.name} found here (their "
            "weights differ); bring that base back, or make a new pool: dylora init POOL"
        )
    fmt = prompt_format(meta["format"], meta["system"])
    scratch = storage.root / "runs" / ".trunk"
    return LivePool(base, fmt, own, storage.artifacts, storage.examples, scratch, expert_memory)
