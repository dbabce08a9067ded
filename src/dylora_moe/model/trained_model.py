"""The model as HF's Trainer looks at it: what learns, in which mode, and what is recomputed.

Knows base, experts and router as parts; knows nothing of passes, gates or losses.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedConfig

from dylora_moe.errors import ConfigError, RoutingError
from dylora_moe.experts.manager import ExpertManager
from dylora_moe.foundation.anatomy import blocks
from dylora_moe.foundation.base import Base
from dylora_moe.model import checkpointing
from dylora_moe.model.operations import count_operations
from dylora_moe.routing.router import DynamicHybridRouter


class TrainedModel(nn.Module, abc.ABC):
    """Base, experts and router, of which experts and router learn.

    Args:
        base: the frozen base.
        router: of width `base.anatomy.d_features`.
        experts: the manager of adapters on `base.model`.

    Raises:
        RoutingError: the router is of another width.
        ConfigError: the manager's adapters are on another model.
    """

    main_input_name = "input_ids"
    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True

    def __init__(self, base: Base, router: DynamicHybridRouter, experts: ExpertManager) -> None:
        super().__init__()
        if experts.model is not base.model:
            raise ConfigError("the experts are on another model; make their manager of base.model")
        if router.d_features != base.anatomy.d_features:
            raise RoutingError(
                f"the router takes {router.d_features} features and the base gives "
                f"{base.anatomy.d_features}; make it of base.anatomy.d_features"
            )
        self.base = base
        self.experts = experts
        self.model = base.model
        self.router = router.to(base.device)
        self._checkpointing = False
        self.model.eval()
        self.train(False)

    @abc.abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """One pass."""

    @property
    def config(self) -> PreTrainedConfig:
        """The base's configuration."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype: the base's."""
        return self.base.dtype

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of experts and router; the frozen base, which has none, is not
        walked through (8 ms a step of SmolLM2)."""
        learned = [self.experts.parameters_of(name).values() for name in self.experts.trainable]
        for parameter in itertools.chain(*learned, self.router.parameters()):
            if parameter.grad is not None:
                parameter.grad = None if set_to_none else parameter.grad.detach().zero_()

    def train(self, mode: bool = True) -> Self:
        """Training mode of experts (their dropout) and router; the base stays in eval mode."""
        self.training = mode
        self.router.train(mode)
        if self.model.training:
            # Not each time: the walk goes through every expert's modules too (0.2 s for 256).
            self.model.eval()
        self.experts.train_dropout(mode)
        for block in self._adapted_blocks:
            # transformers' blocks checkpoint only in training mode; what is inside them stays.
            block.training = self._recomputes
        return self

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recomputes the blocks above the tap in the backward pass (`model.checkpointing`).

        The input is not made to require gradients, so backward stays above the tap.

        Raises:
            ConfigError: reentrant, offloaded, or blocks that cannot be checkpointed.
        """
        if offload:
            raise ConfigError("checkpoints cannot be offloaded; set offload to False")
        slot = self.experts.slot
        checkpointing.enable(
            self._adapted_blocks, slot, gradient_checkpointing_kwargs, every_n_layers
        )
        self._checkpointing = True
        self.train(self.training)

    def gradient_checkpointing_disable(self) -> None:
        """Keeps every block's activations again."""
        checkpointing.disable(self._adapted_blocks)
        self._checkpointing = False
        self.train(self.training)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """The same under the name that transformers is moving to."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **kwargs)

    def activation_checkpointing_disable(self) -> None:
        """The same under the name that transformers is moving to."""
        self.gradient_checkpointing_disable()

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self._checkpointing

    @property
    def is_activation_checkpointing(self) -> bool:
        return self._checkpointing

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Numbers in base, experts and router, tied weights once."""
        embedding = self.model.get_input_embeddings().weight if exclude_embeddings else None
        return sum(
            p.numel()
            for p in self.parameters()
            if (p.requires_grad or not only_trainable) and p is not embedding
        )

    def floating_point_ops(self, inputs: Mapping[str, Any], exclude_embeddings: bool = True) -> int:
        """Operations of one training step on the batch (`model.operations`)."""
        trunk = inputs.get("trunk")
        tokens = inputs["input_ids"].numel() if trunk is None else trunk.hidden[..., 0].numel()
        return count_operations(self.model, self.base.anatomy, tokens, from_tap=trunk is not None)

    def can_generate(self) -> bool:
        """Yes: `model.generation.generate`."""
        return True

    @property
    def _recomputes(self) -> bool:
        return self._checkpointing and self.training

    @property
    def _adapted_blocks(self) -> list[nn.Module]:
        return list(blocks(self.model, self.base.anatomy)[self.base.anatomy.tap_layer :])
