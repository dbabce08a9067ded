"""Adapters inside the model's layers: the only place that speaks with PEFT's tuner.

Knows how an adapter is put in, switched, read and taken out; knows nothing of what an expert means,
where it is stored, or of those that are not in the layers.
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
from dylora_moe.experts import lora_layers, low_rank
from dylora_moe.experts.adapter_tensors import key_a, key_b
from dylora_moe.experts.gates import GateSlot
from dylora_moe.experts.mixture import MixtureLinear
from dylora_moe.experts.packed import Layout, Packed


class Adapters:
    """The LoRA matrices that are in the layers of one model, by name.

    Args:
        model: a base without adapters.
        slot: what its mixture layers read.
    """

    def __init__(self, model: PreTrainedModel, slot: GateSlot) -> None:
        self._model = model
        self._slot = slot
        self._tuner: LoraModel | None = None
        self._layers: dict[str, dict[str, MixtureLinear]] = {}
        self._adapted: dict[str, MixtureLinear] = {}
        self._packed: dict[str, Packed] = {}
        self._versions: dict[str, int] = {}
        self._dropouts: dict[str, list[nn.Dropout]] = {}
        self._trainable: frozenset[str] = frozenset()
        self._still: frozenset[str] = frozenset()
        self._meddled = False
        self._dropping = model.training

    @property
    def device(self) -> torch.device:
        """Where the layers are."""
        return torch.device(self._model.device)

    @property
    def shares_memory(self) -> bool:
        """Whether the layers lie in the CPU's own memory, so that nothing is copied into them."""
        return self.device.type == "cpu"

    def create(self, name: str, config: LoraConfig, paths: Sequence[str]) -> None:
        """Puts a new adapter, with `B` zero, into the layers that the configuration names."""
        if self._tuner is not None and all(path in self._adapted for path in paths):
            # PEFT's injection walks through every module of the model, whatever it adapts.
            self._tuner.peft_config[name] = config
            layers = {path: self._adapted[path] for path in paths}
            for layer in layers.values():
                layer.update_layer(name, config.r, lora_alpha=config.lora_alpha, config=config)
        else:
            layers = self._inject(name, config, paths)
        for layer in layers.values():
            _as_masters(layer, name)
        self._came(name, layers)
        # PEFT has switched gradients in each layer as it saw fit.
        self._meddled = True

    def put(self, name: str, config: LoraConfig, packed: Packed) -> None:
        """Puts an adapter with these numbers in, frozen.

        Args:
            packed: on the layers' device; its flat tensor is what the parameters are views of.
        """
        paths = packed.layout.paths
        if self._tuner is None or not all(path in self._adapted for path in paths):
            # What PEFT draws to begin with is thrown away, and must not move anybody's seed.
            with torch.random.fork_rng(devices=[]):
                self._inject(name, config, paths)
            self._meddled = True
        assert self._tuner is not None
        self._tuner.peft_config[name] = config
        layers = {path: self._adapted[path] for path in paths}
        matrices, dropout = packed.matrices(), lora_layers.dropout_of(config)
        for path, layer in layers.items():
            lora_layers.fill(layer, name, config, path, matrices[path], dropout)
        self._came(name, layers)
        self._packed[name] = packed

    def remove(self, name: str) -> None:
        """Takes an adapter out of every layer."""
        for layer in self._layers.pop(name).values():
            lora_layers.clear(layer, name)
            layer.forget()
        self._packed.pop(name, None)
        del self._versions[name], self._dropouts[name]
        assert self._tuner is not None
        self._tuner.peft_config.pop(name, None)
        self._slot.revision += 1

    def unload(self) -> None:
        """Puts the stock layers back; no adapter is left."""
        for name in tuple(self._layers):
            self.remove(name)
        if self._tuner is not None:
            self._tuner.unload()
            vars(self._model).pop("peft_config", None)
            self._tuner = None
            self._adapted.clear()

    def switch(
        self, active: Sequence[str], trainable: Collection[str], still: Collection[str] = ()
    ) -> None:
        """Sets what PEFT calls active (it counts for merging alone) and who requires gradients.

        Args:
            active: names.
            trainable: names; the others are frozen.
            still: paths of layers in which nobody requires gradients.
        """
        lora_layers.activate(self._adapted.values(), active)
        # Where PEFT has meddled, with all of them; else only those that learned or shall.
        before = self._layers if self._meddled else self._trainable
        self._trainable, self._meddled = frozenset(trainable), False
        self._still = frozenset(still)
        for name in {*before, *trainable} & self._layers.keys():
            for path, layer in self._layers[name].items():
                learns = name in self._trainable and path not in self._still
                layer.lora_A[name].weight.requires_grad_(learns)
                layer.lora_B[name].weight.requires_grad_(learns)
            self._drop(name)
        if self._tuner is not None:
            self._tuner.active_adapter = list(active)
        self._slot.revision += 1

    def train_dropout(self, mode: bool) -> None:
        """Switches the dropout of those that learn, also of who comes or learns later.

        What is frozen never drops: beside one that learns it gives what it gives in answers.
        """
        self._dropping = mode
        for name in self._trainable:
            self._drop(name)

    def _drop(self, name: str) -> None:
        for dropout in self._dropouts.get(name, ()):
            dropout.train(self._dropping and name in self._trainable)

    def tensors(self, name: str) -> dict[str, nn.Parameter]:
        """An adapter's parameters under their names in an adapter file."""
        found: dict[str, nn.Parameter] = {}
        for path, layer in self._layers[name].items():
            found[key_a(path)] = layer.lora_A[name].weight
            found[key_b(path)] = layer.lora_B[name].weight
        return found

    def matrices(self, name: str) -> dict[str, tuple[Tensor, Tensor]]:
        """`A` `[rank, in]` and `B` `[out, rank]` in each layer, without gradients."""
        layers = self._layers[name].items()
        return {path: lora_layers.pair(layer, name) for path, layer in layers}

    def ranks(self, name: str) -> dict[str, int]:
        """Rank that an adapter has in each of its layers."""
        return {path: layer.r[name] for path, layer in self._layers[name].items()}

    def scaling(self, name: str) -> float:
        """LoRA's factor before `B A` in the adapter's first layer."""
        return float(next(iter(self._layers[name].values())).scaling[name])

    def settle(self, name: str) -> None:
        """What the adapter holds now counts as not written to."""
        self._versions[name] = self._version(name)

    def is_written(self, name: str) -> bool:
        """Whether a parameter was written to, by anybody, since the adapter was settled.

        A fused optimizer does it without leaving a trace.
        """
        return self._version(name) != self._versions[name]

    def take(self, name: str, layout: Layout) -> Packed:
        """An adapter's numbers on the CPU: the very tensor they lie in there, else a copy."""
        pairs = self.matrices(name)
        packed = self._packed.get(name)
        if packed is not None and packed.flat.device.type == "cpu":
            there = packed.matrices()
            # Whoever moved the model gave the parameters other memory.
            if all(
                old.data_ptr() == new.data_ptr()
                for path, views in there.items()
                for old, new in zip(views, pairs[path], strict=True)
            ):
                return packed
        return Packed.of(layout, pairs)

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
            down, up = low_rank.merge(
                [lora_layers.pair(layer, s) for s in there],
                [sources[s] * layer.scaling[s] for s in there],
                lora_layers.pair(layer, name),
                layer.scaling[name],
            )
            lora_layers.write(layer, name, down, up)
        self._slot.revision += 1

    def resize(self, name: str, config: LoraConfig) -> None:
        """Gives an adapter the configuration's rank in every layer (`low_rank.resized`).

        What breaks off within leaves layers of two ranks; `put` makes them whole again.
        """
        self._meddled = True
        # By path: new rows are drawn alike whether the adapter was made here or read from a file.
        for _, layer in sorted(self._layers[name].items()):
            before, scaling = lora_layers.pair(layer, name), layer.scaling[name]
            layer.update_layer(name, config.r, lora_alpha=config.lora_alpha, config=config)
            _as_masters(layer, name)
            factor = scaling / layer.scaling[name]
            lora_layers.write(
                layer, name, *low_rank.resized(before, lora_layers.pair(layer, name), factor)
            )
        assert self._tuner is not None
        self._tuner.peft_config[name] = config
        self._packed.pop(name, None)
        self._came(name, self._layers[name])

    def _inject(
        self, name: str, config: LoraConfig, paths: Sequence[str]
    ) -> dict[str, MixtureLinear]:
        layer = functools.partial(MixtureLinear, slot=self._slot)
        # PEFT does not save this mapping, so each configuration carries it anew; GPT-2's Conv1D
        # stands beside nn.Linear, or it would get a stock layer.
        config._register_custom_module({nn.Linear: layer, Conv1D: layer})
        if self._tuner is None:
            self._tuner = LoraModel(self._model, {name: config}, name)
        else:
            self._tuner.peft_config[name] = config
            self._tuner.inject_adapter(self._model, name)
        found = {path: self._model.get_submodule(path) for path in paths}
        layers = {p: m for p, m in found.items() if isinstance(m, MixtureLinear)}
        assert len(layers) == len(found), "PEFT left a targeted layer stock"
        for path, adapted in layers.items():
            if path not in self._adapted:
                # A layer made now starts in training mode, whatever the model's.
                adapted.train(self._model.training)
        self._adapted |= layers
        return layers

    def _came(self, name: str, layers: dict[str, MixtureLinear]) -> None:
        self._layers[name] = layers
        dropouts = {layer.lora_dropout[name] for layer in layers.values()}
        self._dropouts[name] = [each for each in dropouts if isinstance(each, nn.Dropout)]
        for layer in layers.values():
            lora_layers.be_evaluated(layer, name)
        self._drop(name)
        self.settle(name)
        self._slot.revision += 1

    def _version(self, name: str) -> int:
        counted = 0
        for layer in self._layers[name].values():
            counted += layer.lora_A[name].weight._version + layer.lora_B[name].weight._version
        return counted


def _as_masters(layer: MixtureLinear, name: str) -> None:
    # PEFT makes matrices in the base's dtype; in bf16 most optimizer steps would round to nothing.
    layer.lora_A[name].float()
    layer.lora_B[name].float()
