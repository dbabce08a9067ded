"""Finds a causal LM's blocks, linear layers and tap by structure, not by a table of names.

Knows module trees; knows nothing of weights' values, of PEFT or of routing.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dylora_moe.errors import BaseModelError

LINEAR_CLASSES = (nn.Linear, Conv1D)
"""What an expert can adapt; subclasses (8-bit and 4-bit linears) count as well."""

_FEATURE_QUARTERS = 4


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Where a causal LM's parts are.

    Attributes:
        blocks_path: path of the decoder blocks, e.g. `model.layers`.
        layers_pattern: the last name of that path, PEFT's `layers_pattern`.
        n_blocks: number of decoder blocks.
        d_model: width of the hidden state.
        tap_layer: `blocks[:tap_layer]` are never adapted; the hidden state entering
            `blocks[tap_layer]` is the tap.
        attention_targets: linear layers of the attention, as suffixes for PEFT's `target_modules`.
        all_linear_targets: every linear layer inside the blocks, likewise.
        head_name: path of the output head, never a target.
        feature_blocks: the hidden states ENTERING these blocks make the features; the last is
            the tap.
        packs: whether rows can be packed behind one another (the model takes `position_ids`).
    """

    blocks_path: str
    layers_pattern: str
    n_blocks: int
    d_model: int
    tap_layer: int
    attention_targets: tuple[str, ...]
    all_linear_targets: tuple[str, ...]
    head_name: str
    feature_blocks: tuple[int, ...]
    packs: bool = True

    @property
    def d_features(self) -> int:
        """Width of a feature vector: one mean hidden state per feature block."""
        return len(self.feature_blocks) * self.d_model

    @property
    def adapted_blocks(self) -> tuple[int, ...]:
        """Indices of the blocks that experts live in, PEFT's `layers_to_transform`."""
        return tuple(range(self.tap_layer, self.n_blocks))


def find_anatomy(
    model: PreTrainedModel,
    targets: Sequence[str] | None = None,
    tap: int | None = None,
) -> Anatomy:
    """Reads a model's anatomy off its module tree.

    Args:
        model: a causal LM of transformers, not yet wrapped by PEFT.
        targets: suffixes of the linear layers to adapt, where the structure does not tell; they
            then stand for both the attention's and all linear targets.
        tap: number of blocks below the tap; a quarter of the depth where None.

    Raises:
        BaseModelError: no blocks, no linear layers, targets that are not there, or a tap out of
            range.
    """
    path, found = _find_blocks(model)
    head = _find_head(model)
    linears = _linears(found)
    if not linears and targets is None:
        raise BaseModelError(
            f"no linear layer in the blocks {path} of {type(model).__name__}; "
            "name them: targets=['q_proj', ...]"
        )
    names = {leaf for leaf, _ in linears}
    if targets is not None:
        attention = everything = _given(tuple(targets), found, path)
    else:
        everything = _suffixes(names, names)
        of_attention = {leaf for leaf, attends in linears if attends}
        if not of_attention:
            raise BaseModelError(
                f"no attention found in the blocks {path} of {type(model).__name__} among "
                f"{', '.join(sorted(names))}; name the layers to adapt: targets=['q_proj', ...]"
            )
        attention = _suffixes(of_attention, names)
    tap_layer = _tap(len(found), tap)
    return Anatomy(
        blocks_path=path,
        layers_pattern=path.rsplit(".", 1)[-1],
        n_blocks=len(found),
        d_model=_width(model),
        tap_layer=tap_layer,
        attention_targets=attention,
        all_linear_targets=everything,
        head_name=head,
        feature_blocks=feature_blocks(tap_layer),
        packs="position_ids" in inspect.signature(model.forward).parameters,
    )


def blocks(model: nn.Module, anatomy: Anatomy) -> nn.ModuleList:
    """The decoder blocks themselves."""
    found = model.get_submodule(anatomy.blocks_path)
    assert isinstance(found, nn.ModuleList)
    return found


def default_tap(n_blocks: int) -> int:
    """A quarter of the depth, rounded to the nearest block: 8 of 30, 1 of 4.

    Half a block counts upwards, since Python's own rounding would take the even one.
    """
    return max(1, (n_blocks + 2) // 4)


def feature_blocks(tap_layer: int) -> tuple[int, ...]:
    """Four blocks evenly up to the tap, without doubles: 8 gives (2, 4, 6, 8), 1 gives (1,)."""
    quarters = range(1, _FEATURE_QUARTERS + 1)
    return tuple(sorted({max(1, tap_layer * q // _FEATURE_QUARTERS) for q in quarters}))


def matches(key: str, target: str) -> bool:
    """PEFT's rule for `target_modules`: the whole path, or a suffix that starts at a name."""
    return key == target or key.endswith("." + target)


def _find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    candidates = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) > 0
        and len({type(member) for member in module}) == 1
    ]
    if not candidates:
        raise BaseModelError(
            f"{type(model).__name__} has no list of decoder blocks; only decoder-only causal "
            "language models of transformers can be a base"
        )
    # Lists inside a block (experts of a mixture, say) may be longer than the list of blocks.
    outer = [
        (path, module)
        for path, module in candidates
        if not any(path.startswith(other + ".") for other, _ in candidates)
    ]
    path, found = max(outer, key=lambda candidate: len(candidate[1]))
    if len(found) < 2:
        raise BaseModelError(
            f"{type(model).__name__} has {len(found)} block; a base needs at least 2, one below "
            "the tap and one above"
        )
    return path, found


def _find_head(model: PreTrainedModel) -> str:
    head: nn.Module | None = model.get_output_embeddings()
    for path, module in model.named_modules():
        if module is head and path:
            return str(path)
    raise BaseModelError(
        f"{type(model).__name__} has no output head; load it as a causal language model"
    )


def _width(model: PreTrainedModel) -> int:
    embedding = model.get_input_embeddings()
    config = model.config.get_text_config()
    # hidden_size is the blocks' width; the embedding may be narrower (OPT-350m).
    width = getattr(config, "hidden_size", None)
    if isinstance(width, int):
        return width
    if isinstance(embedding, nn.Embedding):
        return embedding.embedding_dim
    raise BaseModelError(f"the hidden width of {type(model).__name__} is not in its config")


def _linears(found: nn.ModuleList) -> list[tuple[str, bool]]:
    """(path inside the block, is part of the attention) of the linear layers of all blocks."""
    seen: dict[str, bool] = {}
    for block in found:
        for path, module in block.named_modules():
            if isinstance(module, LINEAR_CLASSES):
                seen[path] = any(_attends(name, part) for name, part in _parents(block, path))
    return list(seen.items())


def _parents(block: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    names = path.split(".")[:-1]
    module = block
    for name in names:
        module = module.get_submodule(name)
        yield name, module


def _attends(name: str, module: nn.Module) -> bool:
    return "attn" in name.lower() or "attention" in f"{name}{type(module).__name__}".lower()


def _suffixes(chosen: set[str], everything: set[str]) -> tuple[str, ...]:
    """The shortest suffixes that select every chosen path and none of the others."""
    others = everything - chosen
    result = set()
    for path in chosen:
        names = path.split(".")
        result.add(
            next(
                (
                    suffix
                    for suffix in (".".join(names[i:]) for i in range(len(names) - 1, -1, -1))
                    if not any(matches(other, suffix) for other in others)
                ),
                path,
            )
        )
    return tuple(sorted(result))


def _given(targets: tuple[str, ...], found: nn.ModuleList, path: str) -> tuple[str, ...]:
    names = {
        name
        for block in found
        for name, module in block.named_modules()
        if isinstance(module, LINEAR_CLASSES)
    }
    absent = [t for t in targets if not any(matches(name, t) for name in names)]
    if absent or not targets:
        raise BaseModelError(
            f"no linear layer called {', '.join(absent) or '(none given)'} in the blocks {path}; "
            f"there are: {', '.join(_suffixes(names, names)) or 'none'}"
        )
    return tuple(sorted(set(targets)))


def _tap(n_blocks: int, tap: int | None) -> int:
    if tap is None:
        return default_tap(n_blocks)
    if not 1 <= tap <= n_blocks - 1:
        raise BaseModelError(
            f"tap layer {tap} is out of range for a base of {n_blocks} blocks; give 1 to "
            f"{n_blocks - 1}, or none for a quarter of the depth"
        )
    return tap
