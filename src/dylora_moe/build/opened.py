"""A pool's stores and, once something needs it, its base with everything that grew on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dylora_moe.build.opening import load_live, read_own
from dylora_moe.foundation.base import load_base
from dylora_moe.lifecycle.change import Stores
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.storage.pool_folder import Storage


class OpenedPool:
    """What a `Pool` works with.

    Args:
        storage: of the pool.
        device, dtype: of the base; what there is where None.
        live: the pool in memory, if it is there already.
        expert_memory: bytes that experts may take in the model's layers; by the device where None.
    """

    def __init__(
        self,
        storage: Storage,
        device: str | None,
        dtype: str | None,
        live: LivePool | None = None,
        expert_memory: int | None = None,
    ) -> None:
        self.storage = storage
        self.meta: Mapping[str, Any] = storage.registry.meta()
        self.stores = Stores(storage.registry, storage.artifacts, storage.examples, storage.runs)
        self._device, self._dtype, self._live = device, dtype, live
        self._expert_memory = expert_memory

    @property
    def live(self) -> LivePool:
        """The pool in memory, at its current revision; loads the base the first time.

        Raises:
            BaseModelError: the base cannot be found any more.
            PoolError: the base there is not the one the pool was made on.
            ArtifactError: a file of the revision is missing or damaged.
        """
        live, current = self.loaded, self.storage.registry.current()
        if live.revision.number != current.number:
            live.become(current)
        return live

    @property
    def loaded(self) -> LivePool:
        """The same at whatever revision it was last, for a change that leaves damage behind."""
        if self._live is None:
            meta = self.meta
            base = load_base(
                meta["base"],
                device=self._device,
                dtype=self._dtype,
                targets=meta["targets"],
                tap=meta["tap"],
                # Pools from before there was a choice hold none.
                quantize=meta.get("quantize"),
            )
            own = read_own(self.storage.artifacts, meta)
            self._live = load_live(self.storage, meta, base, own, self._expert_memory)
        return self._live
