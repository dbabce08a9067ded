"""Where every expert of a pool is: in the layers, in CPU memory, or in its files alone.

Knows how an expert moves between the three, what may leave and what must be kept; knows nothing of
training, routing or of what an expert means. An expert that is not in the layers costs no module
and no parameter; one that only its files hold costs its configuration.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from peft import LoraConfig
from torch import Tensor

from dylora_moe.errors import ExpertError
from dylora_moe.experts.adapter_files import StoredExpert
from dylora_moe.experts.adapters import Adapters
from dylora_moe.experts.arrivals import Arrival, Arrivals
from dylora_moe.experts.packed import Layout, Packed
from dylora_moe.experts.residency import Residency

Tier = Literal["device", "memory", "disk"]
"""In the model's layers; in CPU memory; in its files alone."""


@dataclass(eq=False)
class Owned:
    """What is known of an expert wherever it is.

    Attributes:
        config: PEFT's configuration.
        layout: shapes of its matrices.
        stored: the files that hold exactly its numbers; None where no file does (created, trained
            or restored since), so that it must not be forgotten.
        packed: its numbers in CPU memory, if they are there.
    """

    config: LoraConfig
    layout: Layout
    stored: StoredExpert | None
    packed: Packed | None = None


class Tiers:
    """Every expert by name, and the two budgets.

    On a CPU the layers and the CPU's memory are the same memory: an expert that leaves the layers
    goes straight to its files, and only one that no file holds stays.

    Args:
        adapters: the experts in the layers.
        in_use: names that must not leave now (in training, or in the running pass).
    """

    def __init__(self, adapters: Adapters, in_use: Callable[[], Collection[str]]) -> None:
        self._adapters = adapters
        self._in_use = in_use
        self._owned: dict[str, Owned] = {}
        self.layers, self.memory = Residency(), Residency()
        self._arrivals = Arrivals()
        # Answers are written in threads of their own.
        self.lock = threading.RLock()

    def __contains__(self, name: str) -> bool:
        return name in self._owned

    def __getitem__(self, name: str) -> Owned:
        return self._owned[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Every expert, in order of arrival."""
        return tuple(self._owned)

    def tier(self, name: str) -> Tier:
        """Where an expert is."""
        if name in self.layers:
            return "device"
        return "memory" if self._owned[name].packed is not None else "disk"

    def register(self, name: str, stored: StoredExpert) -> None:
        """A new expert whose numbers are read when it is first needed."""
        self._owned[name] = Owned(stored.config, stored.layout, stored)

    def add(
        self, name: str, config: LoraConfig, packed: Packed, stored: StoredExpert | None
    ) -> None:
        """A new expert with numbers that are in memory; it goes into the layers."""
        with self.lock:
            self._owned[name] = Owned(config, packed.layout, stored, packed)
            self._keep(name)
            self.bring([name])

    def born(self, name: str, config: LoraConfig, layout: Layout, stay: Collection[str]) -> None:
        """A new expert that was made in the layers, or one that has another shape there now."""
        with self.lock:
            self._forget_copies(name)
            self._owned[name] = Owned(config, layout, None)
            self.layers.add(name, layout.bytes)
            self._make_room({name, *stay})

    def drop(self, name: str) -> None:
        """Forgets an expert; what it has in the layers goes with it."""
        with self.lock:
            self._forget_copies(name)
            if name in self.layers:
                self._adapters.remove(name)
                self.layers.drop(name)
            del self._owned[name]

    def changed(self, name: str) -> None:
        """What an expert computes is, or may soon be, no longer what its files and copies hold."""
        with self.lock:
            self._forget_copies(name)
            self._owned[name].stored = None

    def saved(self, name: str, stored: StoredExpert) -> None:
        """The expert's numbers are those of these files now, so that it can leave.

        Raises:
            ExpertError: the files are of another shape.
        """
        with self.lock:
            owned = self._owned[name]
            if stored.layout != owned.layout:
                raise ExpertError(
                    f"{stored.folder} holds matrices of other shapes than {name} has; save it again"
                )
            owned.stored = stored
            if name in self.layers:
                self._adapters.settle(name)
            elif self._adapters.shares_memory:
                self._forget_copies(name)
            self.trim()

    def is_stored(self, name: str) -> bool:
        """Whether the expert's files hold exactly its numbers."""
        if name in self.layers and self._adapters.is_written(name):
            self.changed(name)
        return self._owned[name].stored is not None

    def bring(self, names: Sequence[str]) -> bool:
        """Puts experts into the layers and makes room for them; they stay whatever their size.

        Several are read at once. If one cannot be read, none of them came.

        Returns:
            Whether any came or left.

        Raises:
            ExpertError: a file is damaged (or what the stored expert's check raises).
        """
        # Tensors of inference mode have no versions and could never learn.
        with self.lock, torch.inference_mode(False):
            missing = [name for name in dict.fromkeys(names) if name not in self.layers]
            if len(missing) > 1:
                self._begin(missing)
            try:
                arrived = {name: self._arrive(name) for name in missing}
            except BaseException:
                # The others' errors would be raised later, though their files were mended.
                for name in missing:
                    self._arrivals.forget(name)
                raise
            for name in names:
                self.layers.use(name)
                self.memory.use(name)
            # What only the last pass needed beyond the budget goes too.
            coming = sum(self._owned[name].layout.bytes for name in missing)
            left = self._make_room(names, coming)
            for name, arrival in arrived.items():
                self._put(name, arrival)
            self.trim()
            return left or bool(missing)

    def prefetch(self, names: Sequence[str]) -> None:
        """Begins to read experts that are about to be brought; an error waits for `bring`.

        What was begun for others and never taken gives way, and at most a quarter of the layers'
        budget is on its way at a time.
        """
        with self.lock:
            budget = self.layers.max_bytes
            missing = [n for n in dict.fromkeys(names) if n not in self.layers]
            self._begin(missing, None if budget is None else budget // 4)

    def leave(self, name: str) -> bool:
        """Takes an expert out of the layers; False where it was not in them."""
        with self.lock:
            if name not in self.layers:
                return False
            owned = self._owned[name]
            if not self.is_stored(name) and owned.packed is None:
                owned.packed = self._adapters.take(name, owned.layout)
                self._keep(name)
            self._adapters.remove(name)
            self.layers.drop(name)
            self.trim()
            return True

    def make_room(self) -> None:
        """Takes out of the layers what is beyond their budget."""
        with self.lock:
            self._make_room(())

    def trim(self) -> None:
        """Lets go of copies in CPU memory that are beyond their budget and stand in files too."""
        with self.lock:
            if self.memory.max_bytes is None or self.memory.held <= self.memory.max_bytes:
                return
            unsaved = {name for name in self.memory if self._owned[name].stored is None}
            for name in self.memory.surplus(unsaved):
                self._forget_copies(name)

    def matrices(self, name: str) -> dict[str, tuple[Tensor, Tensor]]:
        """`A` and `B` of each path, to be read, wherever the expert is; it stays there.

        Raises:
            ExpertError: a file is damaged (or what the stored expert's check raises).
        """
        with self.lock:
            owned = self._owned[name]
            if name in self.layers:
                return self._adapters.matrices(name)
            if owned.packed is not None:
                return owned.packed.matrices()
            assert owned.stored is not None
            return owned.stored.read().matrices()

    def close(self) -> None:
        """Forgets what is on its way."""
        self._arrivals.close()

    def _begin(self, names: Sequence[str], budget: int | None = None) -> None:
        sizes = {name: self._owned[name].layout.bytes for name in names}
        self._arrivals.make_room(sizes, budget)
        for name in names:
            owned = self._owned[name]
            there = self._adapters.shares_memory and owned.packed is not None
            if not there and self._arrivals.fits(sizes[name], budget):
                source = owned.packed if owned.packed is not None else owned.stored
                assert source is not None
                self._arrivals.begin(name, source, self._adapters.device)

    def _arrive(self, name: str) -> Arrival:
        owned = self._owned[name]
        if name in self._arrivals:
            return self._arrivals.take(name)
        if owned.packed is not None:
            return Arrival(owned.packed)
        assert owned.stored is not None
        return Arrival(owned.stored.read())

    def _put(self, name: str, arrival: Arrival) -> None:
        owned = self._owned[name]
        if self._adapters.shares_memory:
            # The parameters become this very memory; it is taken back when the expert leaves.
            self._adapters.put(name, owned.config, arrival.packed)
            self._forget_copies(name)
        else:
            self._adapters.put(name, owned.config, arrival.on(self._adapters.device))
            owned.packed = arrival.packed
            self._keep(name)
        self.layers.add(name, owned.layout.bytes)

    def _make_room(self, stay: Collection[str], coming: int = 0) -> bool:
        budget = self.layers.max_bytes
        if budget is None or self.layers.held + coming <= budget:
            return False
        leaving = self.layers.surplus({*stay, *self._in_use()}, coming)
        for name in leaving:
            self.leave(name)
        return bool(leaving)

    def _keep(self, name: str) -> None:
        self.memory.add(name, self._owned[name].layout.bytes)

    def _forget_copies(self, name: str) -> None:
        self._arrivals.forget(name)
        self.memory.drop(name)
        if name in self._owned:
            self._owned[name].packed = None


def default_budgets(device: torch.device) -> tuple[int, int]:
    """Bytes that experts may take in the layers, and in CPU memory beside them.

    On a GPU with memory of its own a quarter of what is free there now, and 4 GiB; else 1 GiB in
    all.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free // 4, 4 << 30
    return 1 << 30, 0
