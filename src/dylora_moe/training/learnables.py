"""The tensors that a training changes: one expert's matrices and the gate's parameters.

Knows how to make them learn, copy them and put them back; knows nothing of optimizers or losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dylora_moe.model.dylora_moe import DyLoRAMoE

WEIGHTS_FILE = "weights.safetensors"

_EXPERT, _GATE = "expert.", "gate."


class Learnables:
    """One expert and the gate of a model.

    Args:
        model: holds both.
        expert_id: the expert in training.
    """

    def __init__(self, model: DyLoRAMoE, expert_id: str) -> None:
        self._model = model
        self.expert_id = expert_id

    @property
    def expert(self) -> dict[str, nn.Parameter]:
        """The expert's matrices under their names in an adapter file."""
        return dict(self._model.experts.parameters_of(self.expert_id))

    @property
    def is_fresh(self) -> bool:
        """Whether every B of the expert is zero, so that it changes nothing."""
        return not any(bool(p.any()) for name, p in self.expert.items() if "lora_B" in name)

    @property
    def gate(self) -> dict[str, nn.Parameter]:
        """The router's parameters; its closed form is none of them."""
        return dict(self._model.router.named_parameters())

    @contextmanager
    def learning(self, train_gate: bool) -> Iterator[None]:
        """Within it this expert, and the gate if asked, require gradients, and nothing else."""
        manager = self._model.experts
        before = manager.trainable
        gate_before = {name: p.requires_grad for name, p in self.gate.items()}
        manager.touch([self.expert_id])
        manager.set_trainable([self.expert_id])
        try:
            for parameter in self.gate.values():
                parameter.requires_grad_(train_gate)
            yield
        finally:
            manager.set_trainable(before)
            for name, parameter in self.gate.items():
                parameter.grad = None
                parameter.requires_grad_(gate_before[name])
            for parameter in self.expert.values():
                parameter.grad = None

    def copy(self) -> dict[str, Tensor]:
        """Copies of both on the CPU."""
        expert = self._model.experts.state(self.expert_id)
        gate = {name: p.detach().to("cpu", copy=True) for name, p in self.gate.items()}
        return {_EXPERT + name: value for name, value in expert.items()} | {
            _GATE + name: value.contiguous() for name, value in gate.items()
        }

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Puts copies back into the same parameters, so that an optimizer stays valid.

        Where they are of another rank, since it grew between, the expert has that one afterwards,
        and its parameters are new.
        """
        expert = {
            name.removeprefix(_EXPERT): value
            for name, value in weights.items()
            if name.startswith(_EXPERT)
        }
        self._be_of_rank_of(expert)
        self._model.experts.restore(self.expert_id, expert)
        with torch.no_grad():
            for name, parameter in self.gate.items():
                parameter.copy_(weights[_GATE + name])

    def _be_of_rank_of(self, expert: Mapping[str, Tensor]) -> None:
        manager, name = self._model.experts, self.expert_id
        wanted = {value.shape[0] for key, value in expert.items() if "lora_A" in key}
        # One with several ranks never grows.
        if len(wanted) != 1 or not manager.has_one_rank(name):
            return
        (rank,) = wanted
        if rank > manager.rank(name):
            manager.grow_rank(name, rank, seed=0)
        elif rank < manager.rank(name):
            manager.cut_rank(name, rank)


def write_weights(folder: Path, weights: Mapping[str, Tensor], name: str = WEIGHTS_FILE) -> None:
    """Writes a copy as safetensors; an empty one too."""
    save_file(dict(weights), folder / name)


def read_weights(folder: Path, name: str = WEIGHTS_FILE) -> dict[str, Tensor]:
    """The inverse of `write_weights`."""
    return dict(load_file(folder / name))
