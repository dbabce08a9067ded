"""The pool's adapters on one base model; the only owner of PEFT.

Knows how an expert comes into the model, trains, leaves and is written; knows nothing of routing,
skills, versions or the registry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from dylora_moe.errors import ConfigError, ExpertError
from dylora_moe.experts import adapter_files
from dylora_moe.experts.adapters import Adapters
from dylora_moe.experts.gates import GateSlot
from dylora_moe.experts.residency import Residency
from dylora_moe.experts.sites import Sites, Targets
from dylora_moe.foundation.anatomy import Anatomy
from dylora_moe.records import EXPERT_PREFIX

_NAME = re.compile(rf"{EXPERT_PREFIX}[A-Za-z0-9]+")


class ExpertManager:
    """Creates, trains, loads, writes and removes experts in the blocks above the tap.

    With no expert ever created the model is stock. An expert's parameters are fp32 whatever the
    base's dtype, and frozen until `set_active_expert` or `set_trainable` says otherwise. Every
    method that takes a name raises ExpertError where there is no such expert.

    Args:
        model: the frozen base.
        anatomy: where its blocks, targets and tap are.
        slot: what the mixture layers read; a new one where None.
        base_name: written into saved adapters as `base_model_name_or_path`.

    Raises:
        ExpertError: the model carries adapters already.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        anatomy: Anatomy,
        slot: GateSlot | None = None,
        *,
        base_name: str | None = None,
    ) -> None:
        if any(isinstance(module, LoraLayer) for module in model.modules()):
            raise ExpertError("the base carries adapters already; unload() their manager first")
        self.model = model
        self.anatomy = anatomy
        self.slot = slot if slot is not None else GateSlot()
        self.base_name = base_name or str(model.config._name_or_path)
        self._sites = Sites(model, anatomy)
        self._adapters = Adapters(model, self.slot)
        self._trainable: frozenset[str] = frozenset()
        self._pinned: str | None = None
        self._residency = Residency(self._adapters.move, self.bytes)

    @property
    def names(self) -> tuple[str, ...]:
        """Every expert, in order of arrival."""
        return tuple(self._adapters.configs)

    @property
    def pinned(self) -> str | None:
        """The expert that a pass uses where it is told nothing; None: by routing."""
        return self._pinned

    @property
    def trainable(self) -> frozenset[str]:
        """Experts whose parameters require gradients."""
        return self._trainable

    @property
    def offloaded(self) -> tuple[str, ...]:
        """Experts whose tensors were moved to the CPU to save the device's memory."""
        return self._residency.offloaded

    def create_expert(
        self,
        expert_id: str,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        targets: Targets = "all-linear",
        start_from: Mapping[str, float] | None = None,
    ) -> None:
        """Adds an expert that changes nothing yet (`B` is zero), frozen.

        Args:
            expert_id: `expert_` and letters or digits.
            rank: rows of `A`.
            alpha: LoRA's alpha; the delta is multiplied by alpha / rank.
            dropout: on the expert's input while it trains, 0 to below 1.
            targets: the linear layers of the attention, all of them, or suffixes of module names.
            start_from: weights of experts whose summed deltas it starts from instead of zero,
                cut to its rank by SVD (`low_rank.merge`).

        Raises:
            ExpertError: a bad or taken name, no such target, or unknown experts to start from.
            ConfigError: rank, alpha or dropout out of range.
        """
        self._check_new(expert_id)
        if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
            raise ConfigError(
                f"rank {rank}, alpha {alpha}, dropout {dropout}: give a rank of at least 1, a "
                "positive alpha and a dropout from 0 to below 1"
            )
        sources = dict(start_from or {})
        self.touch(tuple(sources))
        paths = self._sites.chosen(targets)
        config = self._sites.config(paths, r=rank, lora_alpha=alpha, lora_dropout=dropout)
        self._inject(expert_id, config, paths)
        self._adapters.merge_into(expert_id, sources)

    def load(
        self, expert_id: str, folder: Path, check: Callable[[Path], None] | None = None
    ) -> None:
        """Adds an expert from any plain PEFT LoRA folder, frozen.

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
            check(adapter_files.weights_file(folder))
        adapter = adapter_files.read_adapter(folder)
        config = self._sites.adapter_config(adapter, str(folder))
        self._inject(expert_id, config, tuple(adapter.matrices))
        for path, (down, up) in adapter.matrices.items():
            self._adapters.write(expert_id, path, down, up)

    def save(self, expert_id: str, folder: Path, model_card: str | None = None) -> None:
        """Writes the expert in PEFT's own format, so that stock PEFT loads it on the stock base."""
        self._check_known(expert_id)
        config = self._adapters.configs[expert_id]
        config.base_model_name_or_path = self.base_name
        adapter_files.write_adapter(folder, config, self.state(expert_id), model_card)

    def remove(self, expert_id: str) -> None:
        """Takes an expert out of the model; the others stay as they are."""
        self._check_known(expert_id)
        self._adapters.remove(expert_id)
        self._residency.drop(expert_id)
        self._trainable -= {expert_id}
        self._pinned = None if self._pinned == expert_id else self._pinned
        self._settle()

    def unload(self) -> None:
        """Removes every expert and puts the stock layers back; the model is as it was loaded."""
        for name in self.names:
            self.remove(name)
        self._adapters.unload()

    def set_active_expert(self, name: str, trainable: bool = True) -> None:
        """Pins one expert: a pass told nothing uses it at weight one, without routing.

        Only its parameters require gradients, and those only if `trainable`.
        """
        self._check_known(name)
        self._pinned = name
        self.set_trainable({name} if trainable else ())

    def activate_all_experts(self) -> None:
        """Lets the router choose among all experts again; what is trainable stays so."""
        self._pinned = None
        self._settle()

    def set_trainable(self, names: Collection[str]) -> None:
        """Exactly these experts' parameters require gradients; which are used stays the same."""
        self.touch(tuple(names))
        self._trainable = frozenset(names)
        self._settle()

    def freeze(self, name: str | None = None) -> None:
        """Freezes one expert, or all where None."""
        self.set_trainable(self._trainable - {name} if name is not None else ())

    def parameters_of(self, name: str) -> dict[str, nn.Parameter]:
        """The expert's parameters under their names in an adapter file."""
        self._check_known(name)
        return self._adapters.tensors(name)

    def trainable_parameters(self, name: str) -> list[nn.Parameter]:
        """The expert's parameters that require gradients."""
        return [p for p in self.parameters_of(name).values() if p.requires_grad]

    def parameter_count(self, name: str) -> int:
        """Numbers in the expert's matrices."""
        return sum(p.numel() for p in self.parameters_of(name).values())

    def parameters_of_shape(self, *, rank: int, targets: Targets) -> int:
        """Numbers a new expert of this shape would have; ExpertError if no such target."""
        return self._sites.parameters(self._sites.chosen(targets), rank)

    def bytes(self, name: str) -> int:
        """Bytes of the expert's matrices in memory."""
        return sum(p.numel() * p.element_size() for p in self.parameters_of(name).values())

    def config(self, name: str) -> dict[str, Any]:
        """PEFT's configuration of the expert as JSON values."""
        self._check_known(name)
        return adapter_files.config_as_json(self._adapters.configs[name])

    def state(self, name: str) -> dict[str, Tensor]:
        """A copy of the expert's matrices on the CPU, under their names in an adapter file."""
        tensors = self.parameters_of(name).items()
        return {key: p.detach().to("cpu", copy=True).contiguous() for key, p in tensors}

    def restore(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Puts matrices back that `state` gave, into the same parameters (optimizers stay valid).

        Raises:
            ExpertError: the state is of another expert's shape.
        """
        self._check_known(name)
        self._adapters.restore(name, state)

    def grow_rank(self, name: str, rank: int) -> None:
        """Raises an expert's rank and changes nothing it computes: new rows of `A`, zeros in `B`.

        Alpha grows with the rank so that the scaling stays. The parameters are new objects: an
        optimizer has to be made again. ExpertError if the rank is not above that of every layer.
        """
        self._check_known(name)
        highest = max(self._adapters.ranks(name))
        if rank <= highest:
            raise ExpertError(f"{name} has rank {highest} already; give more than that to grow")
        config, paths = self._adapters.configs[name], self._adapters.paths(name)
        scaling = self._adapters.scaling(name)
        self._adapters.grow(name, self._sites.grown_config(config, paths, rank, scaling))
        self._settle()

    def train_dropout(self, mode: bool) -> None:
        """Switches every expert's dropout on or off; the base has none of its own running."""
        self._adapters.train_dropout(mode)

    def offload(self, name: str) -> None:
        """Moves an expert's tensors to the CPU until a pass needs them; ExpertError in training."""
        self._check_known(name)
        if name in self._trainable:
            raise ExpertError(f"{name} is in training and cannot leave the device; freeze it first")
        self._residency.leave(name)

    def keep_on_device(self, max_bytes: int | None) -> None:
        """Keeps at most so many bytes of experts on the device: the least recently used leave.

        None is no limit. Experts in use and in training stay in any case.
        """
        self._residency.max_bytes = max_bytes
        self._residency.make_room(self._trainable)

    def touch(self, names: Sequence[str]) -> None:
        """Marks experts as used now and brings their tensors to the device."""
        for name in names:
            self._check_known(name)
        self._residency.touch(names, self._trainable)

    def _inject(self, name: str, config: LoraConfig, paths: Sequence[str]) -> None:
        self._adapters.inject(name, config, paths)
        self._residency.add(name)
        self._settle()
        self._residency.make_room({name, *self._trainable})

    def _settle(self) -> None:
        # PEFT switches adapters and gradients as it sees fit whenever one comes or goes.
        active = (self._pinned,) if self._pinned is not None else self.names
        self.slot.revision += 1
        self._adapters.switch(active, self._trainable)

    def _check_known(self, name: str) -> None:
        if name not in self._adapters.configs:
            raise ExpertError(f"no expert {name}; there are: {', '.join(self.names) or 'none'}")

    def _check_new(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ExpertError(
                f"{name!r} cannot name an expert: PEFT loses tensors of some names; "
                f"use {EXPERT_PREFIX} and letters or digits"
            )
        if name in self._adapters.configs:
            raise ExpertError(f"{name} is taken; remove it first or choose another name")
