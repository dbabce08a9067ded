"""Makes a pool: the base is loaded, writes its own prompts, and the folder appears whole."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dylora_moe import __version__
from dylora_moe.build.opened import OpenedPool
from dylora_moe.build.opening import OWN_FEATURES, Own, load_live
from dylora_moe.foundation.base import ALIASES, Base, load_base
from dylora_moe.foundation.placement import choose_device
from dylora_moe.foundation.quantized import choose_quantization
from dylora_moe.lifecycle.watch import Watch
from dylora_moe.storage import pool_folder

OWN_PROMPTS = 384


def make_pool(
    path: str | Path,
    base: str,
    *,
    kind: str,
    system: str | None,
    tap: int | None,
    targets: Sequence[str] | None,
    device: str | None,
    dtype: str | None,
    quantize: str | None,
    seed: int,
    own_prompts: int,
    database: str | None,
    watch: Watch,
) -> OpenedPool:
    """Makes a pool with no experts; arguments and errors are those of `Pool.create`."""
    pool_folder.check_free(path, database)
    form = choose_quantization(quantize, choose_device(device))
    watch.stage("base", base if form is None else f"{base} in {form}")
    loaded = load_base(base, device=device, dtype=dtype, targets=targets, tap=tap, quantize=form)
    own = Own.write(loaded, kind, system, own_prompts, seed, watch)
    body = own.to_bytes()
    meta = make_meta(loaded, lasting_name(base), kind, system, targets, seed, body)

    def fill(storage: pool_folder.Storage) -> None:
        storage.artifacts.put_bytes(OWN_FEATURES, body)

    storage = pool_folder.create(path, meta, url=database, fill=fill)
    live = load_live(storage, meta, loaded, own.features)
    return OpenedPool(storage, device, dtype, live)


def lasting_name(base: str) -> str:
    """The base's name as another process finds it, whatever folder that is started in."""
    place = Path(base).expanduser()
    return str(place.resolve()) if base not in ALIASES and place.exists() else base


def make_meta(
    base: Base,
    name: str,
    kind: str,
    system: str | None,
    targets: Sequence[str] | None,
    seed: int,
    own: bytes,
) -> dict[str, Any]:
    """The pool's fixed facts; `own` is the body of the file with the base's own prompts."""
    return {
        "own": {"path": OWN_FEATURES, "sha256": hashlib.sha256(own).hexdigest()},
        "base": name,
        "fingerprint": base.fingerprint,
        "format": kind,
        "system": system,
        "tap": base.anatomy.tap_layer,
        "targets": list(targets) if targets is not None else None,
        "quantize": base.quantize,
        "feature_blocks": list(base.anatomy.feature_blocks),
        "seed": seed,
        "version": __version__,
    }
