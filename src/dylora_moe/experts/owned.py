"""The experts that a manager owns, wherever they are: looked at, loaded, written, moved.

Knows names, folders and tiers; knows nothing of how an expert is made, trains or is chosen.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from dylora_moe.errors import ExpertError
from dylora_moe.experts import adapter_files
from dylora_moe.experts.adapter_files import StoredExpert
from dylora_moe.experts.adapter_tensors import key_a, key_b, weights_file
from dylora_moe.experts.adapters import Adapters
from dylora_moe.experts.gates import GateSlot
from dylora_moe.experts.packed import Packed
from dylora_moe.experts.sites import Sites
from dylora_moe.experts.tiers import Tier, Tiers
from dylora_moe.foundation.anatomy import Anatomy
from dylora_moe.records import EXPERT_PREFIX

_NAME = re.compile(rf"{EXPERT_PREFIX}[A-Za-z0-9]+")


class OwnedExperts(abc.ABC):
    """Experts in the layers, in CPU memory and on disk; `ExpertManager` trains and pins them.

    Args:
        model: the frozen base.
        anatomy: where its blocks, targets and tap are.
        slot: what the mixture layers read.
        base_name: written into saved adapters as `base_model_name_or_path`.
    """

    def __init__(
        self, model: PreTrainedModel, anatomy: Anatomy, slot: GateSlot, base_name: str
    ) -> None:
        self.model = model
        self.anatomy = anatomy
        self.slot = slot
        self.base_name = base_name
        self._sites = Sites(model, anatomy)
        self._adapters = Adapters(model, slot)
        self._tiers = Tiers(self._adapters, self._in_use)
        self._trainable: frozenset[str] = frozenset()

    @abc.abstractmethod
    def _settle(self) -> None:
        """Called when experts came into the layers or left them."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every expert, in order of arrival."""
        return self._tiers.names

    @property
    def offloaded(self) -> tuple[str, ...]:
        """Experts at rest: in CPU memory or in their files, and in no layer."""
        return tuple(name for name in self.names if name not in self._tiers.layers)

    @property
    def resident(self) -> tuple[str, ...]:
        """Experts in the model's layers, the least recently used first."""
        return tuple(self._tiers.layers)

    def tier(self, name: str) -> Tier:
        """Where an expert is: `device` (in the layers), `memory` (of the CPU) or `disk`."""
        self._check_known(name)
        return self._tiers.tier(name)

    def load(
        self, expert_id: str, folder: Path, check: Callable[[Path], None] | None = None
    ) -> None:
        """Adds an expert from any plain PEFT LoRA folder, read now, frozen.

        The folder is somebody's, who may change it: the numbers are kept in memory.

        Args:
            expert_id: its name here, whatever it was called where it was trained.
            folder: with `adapter_config.json` and `adapter_model.safetensors`.
            check: called with the file of the weights before it is read, e.g. to verify its hash.

        Raises:
            ExpertError: it is no LoRA adapter, is damaged, is of a kind that cannot be mixed, or
                does not fit the base: unknown modules, other shapes, blocks below the tap.
        """
        self._check_new(expert_id)
        if check is not None:
            check(weights_file(folder))
        stored = self.stored(folder)
        self._tiers.add(expert_id, stored.config, stored.read(), None)
        self._settle()

    def stored(self, folder: Path, check: Callable[[Path], None] | None = None) -> StoredExpert:
        """An expert in a folder whose files never change, for `register`; no numbers are read.

        Args:
            folder: as of `load`.
            check: called with the file of the weights each time before it is read.

        Raises:
            ExpertError: as `load`, but for what only the numbers tell.
        """
        adapter = adapter_files.read_header(folder)
        config = self._sites.adapter_config(adapter, str(folder))
        return StoredExpert(folder, config, self._sites.layout(adapter.ranks), check)

    def register(self, expert_id: str, stored: StoredExpert, packed: Packed | None = None) -> None:
        """Adds an expert that stays in its files until it is first needed.

        Args:
            expert_id: `expert_` and letters or digits.
            stored: its files.
            packed: what was read from them already; the expert then goes into the layers.
        """
        self._check_new(expert_id)
        if packed is None:
            self._tiers.register(expert_id, stored)
        else:
            self._tiers.add(expert_id, stored.config, packed, stored)
            self._settle()

    def saved_as(self, expert_id: str, stored: StoredExpert) -> None:
        """Tells that these files hold the expert's numbers, so that it may leave memory for them.

        Raises:
            ExpertError: it is in training, or the files are of another shape.
        """
        self._check_known(expert_id)
        if expert_id in self._trainable:
            raise ExpertError(
                f"{expert_id} is in training: its numbers are no file's yet; freeze it first"
            )
        self._tiers.saved(expert_id, stored)

    def is_stored_in(self, expert_id: str, folder: Path) -> bool:
        """Whether the folder's files are known to hold exactly the expert's numbers."""
        self._check_known(expert_id)
        if expert_id in self._trainable or not self._tiers.is_stored(expert_id):
            return False
        stored = self._tiers[expert_id].stored
        return stored is not None and stored.folder == folder

    def save(self, expert_id: str, folder: Path, model_card: str | None = None) -> None:
        """Writes the expert in PEFT's own format, so that stock PEFT loads it on the stock base."""
        self._check_known(expert_id)
        config = self._tiers[expert_id].config
        config.base_model_name_or_path = self.base_name
        adapter_files.write_adapter(folder, config, self.state(expert_id), model_card)

    def rank(self, name: str) -> int:
        """The expert's rank; the highest where an adapter from elsewhere has several."""
        self._check_known(name)
        return self._tiers[name].layout.highest_rank

    def has_one_rank(self, name: str) -> bool:
        """Whether every layer has the same."""
        self._check_known(name)
        return len({rank for _, rank, _, _ in self._tiers[name].layout.sites}) == 1

    def parameter_count(self, name: str) -> int:
        """Numbers in the expert's matrices."""
        self._check_known(name)
        return self._tiers[name].layout.count

    def bytes(self, name: str) -> int:
        """Bytes of the expert's matrices where they are in memory."""
        self._check_known(name)
        return self._tiers[name].layout.bytes

    def config(self, name: str) -> dict[str, Any]:
        """PEFT's configuration of the expert as JSON values."""
        self._check_known(name)
        return adapter_files.config_as_json(self._tiers[name].config)

    def state(self, name: str) -> dict[str, Tensor]:
        """A copy of the expert's matrices on the CPU, under their names in an adapter file."""
        self._check_known(name)
        found: dict[str, Tensor] = {}
        for path, (down, up) in self._tiers.matrices(name).items():
            found[key_a(path)] = down.to("cpu", copy=True)
            found[key_b(path)] = up.to("cpu", copy=True)
        return found

    def offload(self, name: str) -> None:
        """Takes an expert out of the layers until it is needed; ExpertError in training.

        It goes into its files, or into CPU memory where no file holds it. A copy that is in CPU
        memory beside a GPU already stays there as long as there is room.
        """
        self._check_known(name)
        self._check_not_learning(name)
        if self._tiers.leave(name):
            self._settle()

    def keep_on_device(self, max_bytes: int | None) -> None:
        """Keeps at most so many bytes of experts in the layers: the least recently used leave.

        None is no limit. Experts in use and in training stay in any case.
        """
        self._tiers.layers.max_bytes = max_bytes
        self._tiers.make_room()
        self._settle()

    def keep_in_memory(self, max_bytes: int | None) -> None:
        """Keeps at most so many bytes of copies in CPU memory beside a GPU; None is no limit.

        An expert that no file holds stays there in any case. On a CPU there is nothing between
        the layers and the files.
        """
        self._tiers.memory.max_bytes = max_bytes
        self._tiers.trim()

    def touch(self, names: Sequence[str]) -> None:
        """Marks experts as used now and brings them into the layers; several are read at once.

        Raises:
            ExpertError: a file is damaged (or what the check given with it raises); none came.
        """
        if not names:
            return
        for name in names:
            self._check_known(name)
        # Nobody may see an expert in the layers before it is switched.
        with self._tiers.lock:
            if self._tiers.bring(names):
                self._settle()

    def prefetch(self, names: Sequence[str]) -> None:
        """Begins to read experts that will be touched soon, in the background.

        Nothing where they are in the layers. What goes wrong is raised when they are touched.
        """
        if len(self._tiers.layers) == len(self._tiers.names):
            return
        for name in names:
            self._check_known(name)
        self._tiers.prefetch(names)

    def _in_use(self) -> Collection[str]:
        gates = self.slot.current
        return self._trainable if gates is None else {*self._trainable, *gates.experts}

    def _check_not_learning(self, name: str) -> None:
        if name in self._trainable:
            raise ExpertError(f"{name} is in training and cannot leave the device; freeze it first")

    def _check_known(self, name: str) -> None:
        if name not in self._tiers:
            raise ExpertError(f"no expert {name}; there are: {', '.join(self.names) or 'none'}")

    def _check_new(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ExpertError(
                f"{name!r} cannot name an expert: PEFT loses tensors of some names; "
                f"use {EXPERT_PREFIX} and letters or digits"
            )
        if name in self._tiers:
            raise ExpertError(f"{name} is taken; remove it first or choose another name")
