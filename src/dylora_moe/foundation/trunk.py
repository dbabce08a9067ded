"""Runs only the blocks below the tap, and starts a model at the tap from what they gave.

Blocks are passed over, never taken out: positions, masks, block types by index and the names of the
weights stay as they are, so it is exact for every family (docs/architecture.md, "Trunk, replay and
packing").
Knows blocks and batches; knows nothing of routing or training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Cache

from dylora_moe.errors import BaseModelError
from dylora_moe.foundation.anatomy import blocks
from dylora_moe.foundation.base import Base
from dylora_moe.foundation.tap import (
    Hiddens,
    Skip,
    TapReader,
    is_skipped,
    pool_features,
)

MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")


@dataclass(frozen=True, slots=True)
class TrunkBatch:
    """What the trunk gives for a batch: constants of the data, since nothing below the tap learns.

    Attributes:
        hidden: the hidden state entering the tap layer, in the base's dtype.
        features: one row per batch row, or per segment of a packed batch; fp32.
        below: the hidden states entering the feature blocks below the tap, side by side, in the
            base's dtype; only where tokens are routed one by one.
    """

    hidden: Float[Tensor, "batch seq d_model"]
    features: Float[Tensor, "n d_features"]
    below: Float[Tensor, "batch seq d_below"] | None = None

    def to(self, device: torch.device | str) -> TrunkBatch:
        """The same on another device."""
        below = None if self.below is None else self.below.to(device)
        return TrunkBatch(self.hidden.to(device), self.features.to(device), below)

    def hiddens(self) -> Hiddens:
        """What a TapReader would have heard of this batch.

        Raises:
            BaseModelError: only the tap's states were kept.
        """
        if self.below is None:
            raise BaseModelError(
                "the trunk states hold the tap alone, and routing token by token reads the feature "
                "blocks below it too; compute them with per_token=True"
            )
        width = self.hidden.shape[-1]
        parts = self.below.split(width, dim=-1) if self.below.shape[-1] else ()
        return (*parts, self.hidden)


@torch.no_grad()
def trunk_states(base: Base, batch: Mapping[str, Tensor], *, per_token: bool = False) -> TrunkBatch:
    """The tap's hidden state and the features, at the cost of the blocks below the tap.

    Always without dropout, also where the model is in training mode, since cached states would
    otherwise depend on the moment.

    Args:
        batch: `input_ids`, `prompt_mask`, and `attention_mask` (left or right padding) or
            `position_ids` with `segment_ids` (packed rows).
        per_token: keep the states of every feature block, which routing token by token reads.

    Raises:
        BaseModelError: packed rows, and a base that cannot keep them apart; or within a replay.
        DataError: a row without a prompt token.
    """
    if "segment_ids" in batch and not base.anatomy.packs:
        raise BaseModelError(
            f"{base.name} takes no position ids, so packed rows would see each other; "
            "switch packing off"
        )
    if is_skipped(blocks(base.model, base.anatomy)[0]):
        raise BaseModelError("the trunk is being replayed; leave the replay before computing it")
    heard: list[Hiddens] = []
    inputs = {key: batch[key].to(base.device) for key in MODEL_INPUTS if key in batch}
    with _evaluating(base.model), TapReader(base.model, base.anatomy).listening(heard.append):
        _run_trunk(base, inputs)
    hiddens = heard[0]
    features = pool_features(hiddens, batch["prompt_mask"], batch.get("segment_ids"))
    below = torch.cat([hiddens[-1][..., :0], *hiddens[:-1]], dim=-1) if per_token else None
    return TrunkBatch(hiddens[-1], features, below)


@contextmanager
def replay(base: Base, hidden: Float[Tensor, "batch seq d_model"]) -> Iterator[None]:
    """Within it, a call of the model starts at the tap from `hidden` and skips the blocks below.

    The model is called as ever, with the same `input_ids`, masks and positions and with
    `use_cache=False`; only right-hand padding may differ from what the blocks would have given.
    Backward passes may run after it ended. Not for several threads at once.

    Raises:
        BaseModelError: in the call, when a KV cache is filled (the blocks below would be missing
            from it) or the batch's shape is not that of `hidden`; at once, when nested.
    """
    below = list(blocks(base.model, base.anatomy))[: base.anatomy.tap_layer]
    shape = _output_shape(base)
    stand_ins: list[Skip] = [_PassOn(shape) for _ in below]
    stand_ins[0] = _Replayed(shape, hidden)
    with _skipping(below, stand_ins):
        yield


@torch.no_grad()
def check_replay(base: Base) -> None:
    """Compares a replay with the whole model, on two short rows, the first time for each base.

    Which families can be replayed is not known from a table, so each is tried before its cached
    states are relied on.

    Raises:
        BaseModelError: the two differ by more than rounding, the replay fails, or the whole model's
            logits are not finite.
    """
    if base.model in _replays:
        return
    vocabulary = base.model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(16, device=base.device).view(2, 8) % vocabulary
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "prompt_mask": mask.bool()}
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    with _evaluating(base.model):
        whole = base.model(**inputs).logits[mask.bool()].float()
        if not whole.isfinite().all():
            raise BaseModelError(
                f"the logits of {base.name} are not finite: it overflows in {base.dtype}; load it "
                "in bf16 or fp32"
            )
        hidden = trunk_states(base, batch).hidden
        try:
            with replay(base, hidden):
                replayed = base.model(**inputs).logits[mask.bool()].float()
        except (BaseModelError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # The family's own code: what it raises is not known.
            raise _not_replayed(base, "it fails") from error
    largest = whole.abs().max().clamp_min(torch.finfo(whole.dtype).tiny)
    off = float((whole - replayed).abs().max() / largest)
    if not off <= (_ROUNDING if base.dtype == torch.float32 else _ROUNDING_16):
        raise _not_replayed(base, f"off by {off:.1%}")
    _replays.add(base.model)


def _not_replayed(base: Base, how: str) -> BaseModelError:
    return BaseModelError(
        f"the blocks above the tap of {base.name} do not give the whole model's logits when they "
        f"start from its cached states ({how}), so it cannot be trained from them; use another "
        "base, and report its architecture"
    )


_ROUNDING, _ROUNDING_16 = 1e-4, 2e-2
_replays: WeakSet[nn.Module] = WeakSet()
"""Models whose replay was compared with the whole."""


class _PassOn(Skip):
    """Returns the hidden state it is given, in the form the family's blocks return."""

    def __init__(self, shape: Callable[[Tensor], Any]) -> None:
        self._shape = shape

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._shape(hidden_states)


class _Replayed(_PassOn):
    """Stands for block 0: returns the cached tap state, which the others pass on."""

    def __init__(self, shape: Callable[[Tensor], Any], hidden: Tensor) -> None:
        super().__init__(shape)
        self._hidden = hidden

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
            raise BaseModelError(
                "a replay cannot fill a KV cache, as the blocks below the tap do not run; "
                "call the model with use_cache=False"
            )
        if hidden_states.shape != self._hidden.shape:
            raise BaseModelError(
                f"the trunk states have shape {list(self._hidden.shape)} and the batch needs "
                f"{list(hidden_states.shape)}; take them for the same rows and padding"
            )
        return self._shape(self._hidden.to(hidden_states))


@contextmanager
def _skipping(skipped: Sequence[nn.Module], stand_ins: Sequence[Skip]) -> Iterator[None]:
    """Shadows the blocks' `forward`; the modules stay, and so do their attributes and names."""
    before = [vars(block).get("forward") for block in skipped]
    if any(isinstance(forward, Skip) for forward in before):
        raise BaseModelError("blocks are skipped already; leave the first replay before a second")
    try:
        for block, stand_in in zip(skipped, stand_ins, strict=True):
            vars(block)["forward"] = stand_in
        yield
    finally:
        for block, forward in zip(skipped, before, strict=True):
            vars(block).pop("forward", None)
            if forward is not None:
                vars(block)["forward"] = forward


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _run_trunk(base: Base, inputs: Mapping[str, Tensor]) -> None:
    """One pass without head and upper blocks; notes the form of what the blocks return."""
    parts = list(blocks(base.model, base.anatomy))
    tap = base.anatomy.tap_layer
    returned: list[Tensor | tuple[Any, ...]] = []

    class _Above(Skip):
        """Returns what the last block below the tap returned, which has the right form."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return returned[0]

    handle = parts[tap - 1].register_forward_hook(lambda _m, _a, output: returned.append(output))
    try:
        with _skipping(parts[tap:], [_Above() for _ in parts[tap:]]):
            base.model.base_model(**inputs, use_cache=False)
    finally:
        handle.remove()
    output = returned[0]
    _tuple_lengths[base.model] = len(output) if isinstance(output, tuple) else 0


_tuple_lengths: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""How long the tuple is that a model's blocks return; 0 where it is the hidden state itself."""


class _Unheard(Skip):
    """Computes the block as ever; a listening TapReader takes it for skipped."""

    def __init__(self, block: nn.Module) -> None:
        self._forward = block.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)


def _output_shape(base: Base) -> Callable[[Tensor], Any]:
    """Makes a block's output of a hidden state: itself, or a tuple with nothing else in it.

    The form is the family's (and the version of transformers'), so one token is run to see it
    where no trunk was computed before.
    """
    if base.model not in _tuple_lengths:
        below = list(blocks(base.model, base.anatomy))[: base.anatomy.tap_layer]
        token = torch.zeros(1, 1, dtype=torch.long, device=base.device)
        unheard = [_Unheard(block) for block in below]
        with torch.no_grad(), _evaluating(base.model), _skipping(below, unheard):
            _run_trunk(base, {"input_ids": token})
    length = _tuple_lengths[base.model]
    if length == 0:
        return lambda hidden: hidden
    return lambda hidden: (hidden, *[None] * (length - 1))
