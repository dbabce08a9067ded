"""The linear layers that experts may adapt: those of the blocks above the tap.

Knows paths and shapes of the base, and how PEFT is told of them; changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from peft import LoraConfig, TaskType
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dylora_moe.errors import ExpertError
from dylora_moe.experts.adapter_files import Adapter
from dylora_moe.experts.adapter_tensors import Shape
from dylora_moe.experts.packed import Layout
from dylora_moe.foundation.anatomy import LINEAR_CLASSES, Anatomy, blocks, matches

Targets = Literal["attention", "all-linear"] | Sequence[str]
"""The attention's linear layers, all of a block's, or suffixes of module paths."""


class Sites:
    """Where adapters fit on a stock base.

    Args:
        model: the base before any adapter.
        anatomy: its blocks and tap.
    """

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self._shapes: dict[str, tuple[int, int]] = {}
        self._block_of: dict[str, int] = {}
        self._layouts: dict[Layout, Layout] = {}
        self._transposed = False
        for index, block in enumerate(blocks(model, anatomy)):
            for inner, module in block.named_modules():
                if isinstance(module, LINEAR_CLASSES):
                    path = f"{anatomy.blocks_path}.{index}.{inner}"
                    self._shapes[path] = _shape(module)
                    self._block_of[path] = index
                    self._transposed |= isinstance(module, Conv1D)

    def chosen(self, targets: Targets) -> tuple[str, ...]:
        """Paths above the tap that the targets name.

        Raises:
            ExpertError: a target names none.
        """
        if targets == "attention":
            suffixes: tuple[str, ...] = self._anatomy.attention_targets
        elif targets == "all-linear":
            suffixes = self._anatomy.all_linear_targets
        else:
            suffixes = (targets,) if isinstance(targets, str) else tuple(targets)
        open_paths = self._open()
        absent = [s for s in suffixes if not any(matches(path, s) for path in open_paths)]
        if absent or not suffixes:
            raise ExpertError(
                f"no linear layer called {', '.join(absent) or '(none given)'} above the tap; "
                f"there are: {', '.join(self._anatomy.all_linear_targets)}"
            )
        return tuple(p for p in open_paths if any(matches(p, s) for s in suffixes))

    def layout(self, ranks: Mapping[str, int]) -> Layout:
        """The shapes of an expert that has these ranks at these paths, in whatever order."""
        layout = Layout(tuple((path, ranks[path], *self._shapes[path]) for path in sorted(ranks)))
        # A thousand experts are of a few shapes, and each has hundreds of sites.
        return self._layouts.setdefault(layout, layout)

    def parameters(self, paths: Iterable[str], rank: int) -> int:
        """Numbers in `A` and `B` of this rank at these paths."""
        return sum(rank * sum(self._shapes[path]) for path in paths)

    def config(self, paths: Iterable[str], **values: Any) -> LoraConfig:
        """PEFT's configuration that adapts exactly these paths, in as few words as it can."""
        chosen = set(paths)
        indices = sorted({self._block_of[path] for path in chosen})
        inside = {path.split(f".{self._block_of[path]}.", 1)[1] for path in chosen}
        return LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            target_modules=self._names(chosen, inside, indices),
            layers_to_transform=indices,
            layers_pattern=self._anatomy.layers_pattern,
            fan_in_fan_out=self._transposed,
            **values,
        )

    def adapter_config(self, adapter: Adapter, source: str) -> LoraConfig:
        """This base's configuration of an adapter that was read, if it fits.

        Args:
            adapter: from `read_header`.
            source: what errors call it.

        Raises:
            ExpertError: unknown modules, other shapes, blocks below the tap, or ranks that are not
                those of its configuration.
        """
        self._check_places(adapter.shapes, source)
        old = adapter.config
        ranks = old.rank_pattern or {}
        for path, rank in adapter.ranks.items():
            said = ranks.get(get_pattern_key(ranks.keys(), path), old.r)
            if said != rank:
                raise ExpertError(
                    f"{source} says rank {said} and holds {rank} at {path}; its two files do not "
                    "belong together: copy both again"
                )
        return self.config(
            adapter.shapes,
            r=old.r,
            lora_alpha=old.lora_alpha,
            lora_dropout=old.lora_dropout,
            use_rslora=old.use_rslora,
            rank_pattern=dict(ranks),
            alpha_pattern=dict(old.alpha_pattern or {}),
        )

    def block_of(self, path: str) -> int:
        """The block that a layer is in."""
        return self._block_of[path]

    def below(self, block: int) -> frozenset[str]:
        """Paths of the layers in the blocks below this one."""
        return frozenset(path for path, index in self._block_of.items() if index < block)

    def resized_config(
        self, old: LoraConfig, paths: Iterable[str], rank: int, scaling: float
    ) -> LoraConfig:
        """The configuration at another rank, the same in every layer, with alpha for a scaling."""
        return self.config(
            paths,
            r=rank,
            lora_alpha=scaling * (rank**0.5 if old.use_rslora else rank),
            lora_dropout=old.lora_dropout,
            use_rslora=old.use_rslora,
        )

    def _check_places(self, shapes: Mapping[str, tuple[Shape, Shape]], source: str) -> None:
        unknown = [path for path in shapes if path not in self._shapes]
        if unknown:
            raise ExpertError(
                f"{source} adapts {', '.join(unknown[:3])}{' ...' if len(unknown) > 3 else ''}, "
                "which are no linear layers in this base's blocks; it was trained on another base"
            )
        tap = self._anatomy.tap_layer
        below = sorted({self._block_of[path] for path in shapes if self._block_of[path] < tap})
        if below:
            raise ExpertError(
                f"{source} adapts blocks {', '.join(map(str, below))} below the tap at block "
                f"{tap}, where nothing is ever adapted; use a pool with a lower tap: "
                "dylora init POOL --tap N, or train it on the blocks from the tap up"
            )
        for path, (down, up) in shapes.items():
            d_in, d_out = self._shapes[path]
            if down[1:] != (d_in,) or up != (d_out, *down[:1]):
                raise ExpertError(
                    f"{source} has matrices {down} and {up} at {path}, "
                    f"which takes {d_in} and gives {d_out}; it was trained on another base"
                )

    def _open(self) -> list[str]:
        return [path for path, i in self._block_of.items() if i >= self._anatomy.tap_layer]

    def _names(self, chosen: set[str], inside: set[str], indices: Collection[int]) -> list[str]:
        same = {path for path, i in self._block_of.items() if i in indices}
        for suffixes in (_shortest(inside), sorted(inside)):
            if {p for p in same if any(matches(p, s) for s in suffixes)} == chosen:
                return suffixes
        return sorted(chosen)


def _shortest(inside: set[str]) -> list[str]:
    return sorted({path.rsplit(".", 1)[-1] for path in inside})


def _shape(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features
