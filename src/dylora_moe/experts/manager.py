"""The pool's adapters on one base model; the only owner of PEFT.

Knows how an expert is made, trains and is taken out; knows nothing of routing, skills, versions or
the registry. What an expert is wherever it lies stands in `owned`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from dylora_moe.errors import ConfigError, ExpertError
from dylora_moe.experts import low_rank
from dylora_moe.experts.adapter_tensors import key_a, key_b
from dylora_moe.experts.gates import GateSlot
from dylora_moe.experts.owned import OwnedExperts
from dylora_moe.experts.packed import Packed
from dylora_moe.experts.sites import Targets
from dylora_moe.foundation.anatomy import Anatomy
from dylora_moe.foundation.seeding import seeded


class ExpertManager(OwnedExperts):
    """Creates, trains, loads, writes and removes experts in the blocks above the tap.

    With no expert ever created the model is stock. An expert's parameters are fp32 whatever the
    base's dtype, and frozen until `set_active_expert` or `set_trainable` says otherwise. Every
    method that takes a name raises ExpertError where there is no such expert, and works wherever
    the expert is: one at rest comes into the layers when a method needs its parameters there. Then
    a damaged file raises ExpertError, or what the `check` given with it raises.

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
        name = base_name or str(model.config._name_or_path)
        super().__init__(model, anatomy, slot if slot is not None else GateSlot(), name)
        self._pinned: str | None = None
        self._learns_from = 0

    @property
    def pinned(self) -> str | None:
        """The expert that a pass uses where it is told nothing; None: by routing."""
        return self._pinned

    @property
    def trainable(self) -> frozenset[str]:
        """Experts whose parameters require gradients."""
        return self._trainable

    @property
    def learns_from(self) -> int:
        """The first block in which experts in training learn; 0: in all that they adapt."""
        return self._learns_from

    def create_expert(
        self,
        expert_id: str,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        targets: Targets = "all-linear",
        start_from: Mapping[str, float] | None = None,
        seed: int | None = None,
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
            seed: of the numbers of `A`; torch's own state where None.

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
        with seeded(seed, self._adapters.device):
            self._adapters.create(expert_id, config, paths)
        self._adapters.merge_into(expert_id, sources)
        layout = self._sites.layout(self._adapters.ranks(expert_id))
        self._tiers.born(expert_id, config, layout, stay=sources)
        self._settle()

    def remove(self, expert_id: str) -> None:
        """Takes an expert out of the model; the others stay as they are."""
        self._check_known(expert_id)
        was_used = expert_id in self._tiers.layers or expert_id == self._pinned
        self._tiers.drop(expert_id)
        self._trainable -= {expert_id}
        self._pinned = None if self._pinned == expert_id else self._pinned
        if was_used:
            self._settle()

    def unload(self) -> None:
        """Removes every expert and puts the stock layers back; the model is as it was loaded."""
        for name in self.names:
            self.remove(name)
        self._tiers.close()
        self._adapters.unload()

    def set_active_expert(self, name: str, trainable: bool = True) -> None:
        """Pins one expert: a pass told nothing uses it at weight one, without routing.

        Only its parameters require gradients, and those only if `trainable`.
        """
        self.touch([name])
        self._pinned = name
        self.set_trainable({name} if trainable else ())

    def activate_all_experts(self) -> None:
        """Lets the router choose among all experts again; what is trainable stays so."""
        self._pinned = None
        self._settle()

    def set_trainable(self, names: Collection[str]) -> None:
        """Exactly these experts' parameters require gradients; which are used stays the same."""
        self.touch(tuple(names))
        for name in names:
            self._tiers.changed(name)
        self._trainable, self._learns_from = frozenset(names), 0
        self._settle()

    def learn_from(self, block: int) -> None:
        """Freezes what experts in training have in the blocks below this one, until `set_trainable`
        or another block is given. So no gradient is needed below it."""
        self._learns_from = block
        self._settle()

    def changes(self, name: str, before: Mapping[str, Tensor]) -> dict[int, float]:
        """How far an expert has moved in each of its blocks since a state of the same layers.

        The Frobenius norm of what the block's deltas `B A` changed by over that of what they are
        now, all layers of the block together; infinite where they are nothing now.
        """
        self.touch([name])
        sums: dict[int, tuple[float, float]] = {}
        for path, now in self._adapters.matrices(name).items():
            old = tuple(before[key].to(now[0].device) for key in (key_a(path), key_b(path)))
            change, size = low_rank.moved((old[0], old[1]), now)
            block = self._sites.block_of(path)
            already = sums.get(block, (0.0, 0.0))
            sums[block] = already[0] + change, already[1] + size
        return {
            block: math.sqrt(change / size) if size > 0 else math.inf
            for block, (change, size) in sorted(sums.items())
        }

    def freeze(self, name: str | None = None) -> None:
        """Freezes one expert, or all where None."""
        self.set_trainable(self._trainable - {name} if name is not None else ())

    def parameters_of(self, name: str) -> dict[str, nn.Parameter]:
        """The expert's parameters under their names in an adapter file."""
        self.touch([name])
        return self._adapters.tensors(name)

    def trainable_parameters(self, name: str) -> list[nn.Parameter]:
        """The expert's parameters that require gradients."""
        return [p for p in self.parameters_of(name).values() if p.requires_grad]

    def parameters_of_shape(self, *, rank: int, targets: Targets) -> int:
        """Numbers a new expert of this shape would have; ExpertError if no such target."""
        return self._sites.parameters(self._sites.chosen(targets), rank)

    def restore(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Puts matrices back that `state` gave, into the same parameters (optimizers stay valid).

        Raises:
            ExpertError: the state is of another expert's shape.
        """
        self.touch([name])
        self._tiers.changed(name)
        self._adapters.restore(name, state)

    def grow_rank(self, name: str, rank: int, seed: int | None = None) -> None:
        """Raises an expert's rank and changes nothing it computes: new rows of `A`, zeros in `B`.

        Alpha grows with the rank so that the scaling stays. The parameters are new objects: an
        optimizer has to be told. ExpertError if the rank is not above that of every layer.

        Args:
            name: the expert.
            rank: the new one.
            seed: of the new rows; torch's own state where None.
        """
        highest = self.rank(name)
        if rank <= highest:
            raise ExpertError(f"{name} has rank {highest} already; give more than that to grow")
        with seeded(seed, self._adapters.device):
            self._resize(name, rank)

    def cut_rank(self, name: str, rank: int) -> None:
        """Keeps the first `rank` rows of `A` and columns of `B`: undoes `grow_rank` where what that
        added is not wanted. The parameters are new objects.

        ExpertError if the rank is not below the expert's, or the expert has several.
        """
        if not self.has_one_rank(name) or not 1 <= rank < self.rank(name):
            raise ExpertError(
                f"{name} cannot be cut to rank {rank}: it has {self.rank(name)}, or several; give "
                "less than the one rank it has"
            )
        # What would be drawn is cut off.
        with seeded(0, self._adapters.device):
            self._resize(name, rank)

    def train_dropout(self, mode: bool) -> None:
        """Switches the dropout of the experts that learn; the base has none of its own running."""
        self._adapters.train_dropout(mode)

    def _resize(self, name: str, rank: int) -> None:
        self.touch([name])
        old, scaling = self._tiers[name], self._adapters.scaling(name)
        config = self._sites.resized_config(old.config, old.layout.paths, rank, scaling)
        before = self._adapters.matrices(name)
        try:
            self._adapters.resize(name, config)
            self._tiers.born(name, config, self._sites.layout(self._adapters.ranks(name)), stay=())
        except BaseException:
            # Interrupted between two layers: of two ranks nobody could make one again.
            packed = Packed.of(old.layout, before).to(self._adapters.device)
            self._adapters.put(name, old.config, packed)
            self._tiers.born(name, old.config, old.layout, stay=())
            self._settle()
            raise
        self._settle()

    def _settle(self) -> None:
        # PEFT switches adapters and gradients as it sees fit whenever one comes or goes.
        active = (self._pinned,) if self._pinned is not None else self.resident
        self.slot.revision += 1
        still = self._sites.below(self._learns_from) if self._learns_from else ()
        self._adapters.switch(active, self._trainable, still)
