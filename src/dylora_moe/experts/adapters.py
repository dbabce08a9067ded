"""Adapters inside the model's layers: the only place that speaks with PEFT's tuner.

Knows how an adapter is injected, switched, moved and taken out; knows nothing of what an expert
means or where it is stored.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence

import torch
from peft import LoraConfig, LoraModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dylora_moe.errors import ExpertError
from dylora_moe.experts import low_rank
from dylora_moe.experts.adapter_files import key_a, key_b
from dylora_moe.experts.gates import GateSlot
from dylora_moe.experts.mixture import MixtureLinear


class Adapters:
    """The LoRA matrices of all experts, by name, in one model.

    Args:
        model: a base without adapters.
        slot: what its mixture layers read.
    """

    def __init__(self, model: PreTrainedModel, slot: GateSlot) -> None:
        self._model = model
        self._slot = slot
        self._tuner: LoraModel | None = None
        self.configs: dict[str, LoraConfig] = {}
        self._layers: dict[str, dict[str, MixtureLinear]] = {}
        self._dropping = model.training

    def inject(self, name: str, config: LoraConfig, paths: Sequence[str]) -> None:
        """Puts a new adapter, with `B` zero, into the layers that the configuration names."""
        layer = functools.partial(MixtureLinear, slot=self._slot)
        # PEFT does not save this mapping, so each configuration carries it anew; GPT-2's Conv1D
        # stands beside nn.Linear, or it would get a stock layer.
        config._register_custom_module({nn.Linear: layer, Conv1D: layer})
        if self._tuner is None:
            self._tuner = LoraModel(self._model, {name: config}, name)
        else:
            self._tuner.peft_config[name] = config
            self._tuner.inject_adapter(self._model, name)
        self.configs[name] = config
        found = {path: self._model.get_submodule(path) for path in paths}
        self._layers[name] = {p: m for p, m in found.items() if isinstance(m, MixtureLinear)}
        assert len(self._layers[name]) == len(found), "PEFT left a targeted layer stock"
        for adapted in self._layers[name].values():
            # A layer made now starts in training mode, whatever the model's.
            adapted.train(self._model.training)
            _as_masters(adapted, name)
        self.train_dropout(self._dropping)

    def remove(self, name: str) -> None:
        """Takes an adapter out of every layer."""
        for layer in self._layers.pop(name).values():
            # Emptied first: PEFT would warn that it activates some other adapter instead.
            layer.set_adapter([])
            layer.delete_adapter(name)
        del self.configs[name]
        assert self._tuner is not None
        self._tuner.peft_config.pop(name, None)
        self._slot.revision += 1

    def unload(self) -> None:
        """Puts the stock layers back; no adapter is left."""
        for name in tuple(self.configs):
            self.remove(name)
        if self._tuner is not None:
            self._tuner.unload()
            vars(self._model).pop("peft_config", None)
            self._tuner = None

    def switch(self, active: Sequence[str], trainable: Collection[str]) -> None:
        """Sets what PEFT calls active (it counts for merging alone) and who requires gradients."""
        layers = {id(layer): layer for of in self._layers.values() for layer in of.values()}
        for layer in layers.values():
            layer.set_adapter(list(active), inference_mode=True)
        for name in trainable:
            for parameter in self.tensors(name).values():
                parameter.requires_grad_(True)
        if self._tuner is not None:
            self._tuner.active_adapter = list(active)
        self._slot.revision += 1

    def train_dropout(self, mode: bool) -> None:
        """Switches the dropout of every adapter, those that come later too."""
        self._dropping = mode
        for layers in self._layers.values():
            for layer in layers.values():
                layer.lora_dropout.train(mode)

    def tensors(self, name: str) -> dict[str, nn.Parameter]:
        """An adapter's parameters under their names in an adapter file."""
        found: dict[str, nn.Parameter] = {}
        for path, layer in self._layers[name].items():
            found[key_a(path)] = layer.lora_A[name].weight
            found[key_b(path)] = layer.lora_B[name].weight
        return found

    def ranks(self, name: str) -> set[int]:
        """Ranks that an adapter has in its layers."""
        return {layer.r[name] for layer in self._layers[name].values()}

    def scaling(self, name: str) -> float:
        """LoRA's factor before `B A` in the adapter's first layer."""
        return float(next(iter(self._layers[name].values())).scaling[name])

    def paths(self, name: str) -> tuple[str, ...]:
        """The layers an adapter is in."""
        return tuple(self._layers[name])

    def write(self, name: str, path: str, down: Tensor, up: Tensor) -> None:
        """Writes one layer's `A` `[rank, in]` and `B` `[out, rank]`."""
        layer = self._layers[name][path]
        with torch.no_grad():
            layer.lora_A[name].weight.copy_(down)
            layer.lora_B[name].weight.copy_(up)

    def restore(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Writes a state into the parameters that are there.

        Raises:
            ExpertError: it is of other layers or another rank.
        """
        tensors = self.tensors(name)
        shapes = {key: p.shape for key, p in tensors.items()}
        if shapes != {key: value.shape for key, value in state.items()}:
            raise ExpertError(
                f"the state does not fit {name}: other layers or another rank; "
                "restore one that was taken of the same expert"
            )
        with torch.no_grad():
            for key, parameter in tensors.items():
                parameter.copy_(state[key])
        self._slot.revision += 1

    def merge_into(self, name: str, sources: dict[str, float]) -> None:
        """Starts an adapter from the weighted sum of others, layer by layer."""
        for path, layer in self._layers[name].items():
            there = [s for s in sources if path in self._layers[s]]
            if not there:
                continue
            own = self._pair(layer, name)
            down, up = low_rank.merge(
                [self._pair(layer, s) for s in there],
                [sources[s] * layer.scaling[s] for s in there],
                own,
                layer.scaling[name],
            )
            self.write(name, path, down, up)

    def grow(self, name: str, config: LoraConfig) -> None:
        """Gives an adapter the configuration's rank in every layer and keeps what it computes."""
        config._register_custom_module(self.configs[name]._custom_modules)
        for path, layer in self._layers[name].items():
            old, scaling = self._pair(layer, name), layer.scaling[name]
            layer.update_layer(name, config.r, lora_alpha=config.lora_alpha, config=config)
            _as_masters(layer, name)
            factor = scaling / layer.scaling[name]
            self.write(name, path, *low_rank.grow(old, self._pair(layer, name), factor))
            layer.lora_dropout[name].train(self._dropping)
        assert self._tuner is not None
        self.configs[name] = self._tuner.peft_config[name] = config

    def move(self, name: str, to_device: bool) -> None:
        """Moves an adapter's tensors to its layers' devices, or to the CPU."""
        for layer in self._layers[name].values():
            device = layer.weight.device if to_device else torch.device("cpu")
            for module in (layer.lora_A[name], layer.lora_B[name]):
                module.to(device)
        self._slot.revision += 1

    @staticmethod
    def _pair(layer: MixtureLinear, name: str) -> tuple[Tensor, Tensor]:
        # An expert that was offloaded is read where its layer is.
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        return down.detach().to(layer.weight.device), up.detach().to(layer.weight.device)


def _as_masters(layer: MixtureLinear, name: str) -> None:
    # PEFT makes matrices in the base's dtype; in bf16 most optimizer steps would round to nothing.
    layer.lora_A[name].float()
    layer.lora_B[name].float()
