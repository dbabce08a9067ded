from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from dylora_moe.errors import BaseModelError
from dylora_moe.foundation import trunk as trunk_module
from dylora_moe.foundation.anatomy import blocks
from dylora_moe.foundation.base import Base
from dylora_moe.foundation.tap import is_skipped
from dylora_moe.foundation.trunk import TrunkBatch, check_replay, replay, trunk_states
from tests.foundation.batches import model_inputs, packed, padded, rows
from tests.models import FAMILIES, PACKING_FAMILIES, tiny_base

TOLERANCE = 1e-4


def _logits(base: Base, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return base.model(**model_inputs(batch), use_cache=False).logits


def _replayed(base: Base, batch: dict[str, Tensor]) -> Tensor:
    trunk = trunk_states(base, batch)
    with replay(base, trunk.hidden):
        return _logits(base, batch)


@pytest.mark.parametrize("tap", [1, 2, 3])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_replayed_logits_are_the_full_models_bit_for_bit(family: str, side: str, tap: int) -> None:
    base = tiny_base(family, tap=tap)
    batch = padded(rows(), side)
    assert torch.equal(_replayed(base, batch), _logits(base, batch))


@pytest.mark.parametrize("family", PACKING_FAMILIES)
def test_replayed_logits_of_packed_rows_are_those_of_the_rows_alone(family: str) -> None:
    base = tiny_base(family)
    chosen = rows()
    batch = packed(chosen)
    replayed = _replayed(base, batch)
    assert torch.equal(replayed, _logits(base, batch))
    alone = [_logits(base, padded([row]))[0] for row in chosen]
    torch.testing.assert_close(replayed[0], torch.cat(alone), atol=TOLERANCE, rtol=0)


def test_a_base_without_position_ids_refuses_packed_rows() -> None:
    base = tiny_base("mpt")
    with pytest.raises(BaseModelError, match="switch packing off"):
        trunk_states(base, packed(rows()))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trunk_is_the_hidden_state_entering_the_tap_layer(family: str) -> None:
    base = tiny_base(family, layers=6, tap=4)
    batch = padded(rows())
    trunk = trunk_states(base, batch)
    with torch.no_grad():
        full = base.model(**model_inputs(batch), use_cache=False, output_hidden_states=True)
    assert torch.equal(trunk.hidden, full.hidden_states[4])
    mask = batch["prompt_mask"][..., None]
    means = [
        (full.hidden_states[f] * mask).sum(1) / mask.sum(1) for f in base.anatomy.feature_blocks
    ]
    torch.testing.assert_close(trunk.features, torch.cat(means, 1), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_do_not_depend_on_padding_or_neighbours(family: str) -> None:
    base = tiny_base(family)
    chosen = rows()
    alone = torch.cat([trunk_states(base, padded([row])).features for row in chosen])
    batches = [padded(chosen), padded(chosen, width=20)]
    if family != "gpt2":  # its positions count from the first column, padding included
        batches.append(padded(chosen, "left"))
    if base.anatomy.packs:
        batches.append(packed(chosen))
    for batch in batches:
        features = trunk_states(base, batch).features
        torch.testing.assert_close(features, alone, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_replay_computes_nothing_below_the_tap_and_trunk_nothing_above(family: str) -> None:
    base = tiny_base(family)
    batch = padded(rows())
    reference = _logits(base, batch)
    trunk = trunk_states(base, batch)
    broken = copy.deepcopy(base.model)
    spoilt = Base(
        broken,
        base.tokenizer,
        base.anatomy,
        base.name,
        base.fingerprint,
        base.device,
        base.dtype,
    )
    for block in blocks(broken, base.anatomy)[:2]:
        for weight in block.parameters():
            weight.fill_(float("nan"))
    with replay(spoilt, trunk.hidden):
        assert torch.equal(_logits(spoilt, batch), reference)
    broken.load_state_dict(base.model.state_dict())
    for block in blocks(broken, base.anatomy)[2:]:
        for weight in block.parameters():
            weight.fill_(float("nan"))
    assert torch.equal(trunk_states(spoilt, batch).hidden, trunk.hidden)


@pytest.mark.parametrize("family", FAMILIES)
def test_replay_leaves_the_model_as_it_was_even_after_an_error(family: str) -> None:
    base = tiny_base(family)
    batch = padded(rows())
    before, names = _logits(base, batch), list(base.model.state_dict())
    trunk = trunk_states(base, batch)
    with replay(base, trunk.hidden):
        assert list(base.model.state_dict()) == names
    with pytest.raises(RuntimeError, match="stop"), replay(base, trunk.hidden):
        raise RuntimeError("stop")
    assert torch.equal(_logits(base, batch), before)
    assert not any(module._forward_hooks for module in base.model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_replay_refuses_to_fill_a_cache(family: str) -> None:
    base = tiny_base(family)
    batch = padded(rows())
    trunk = trunk_states(base, batch)
    with replay(base, trunk.hidden), pytest.raises(BaseModelError, match="use_cache=False"):
        base.model(**model_inputs(batch), use_cache=True)


def test_replay_refuses_states_of_another_shape_and_nesting() -> None:
    base = tiny_base()
    trunk = trunk_states(base, padded(rows()))
    with replay(base, trunk.hidden):
        with pytest.raises(BaseModelError, match="same rows and padding"):
            _logits(base, padded(rows(), width=20))
        with pytest.raises(BaseModelError, match="leave the first"), replay(base, trunk.hidden):
            pass
        with pytest.raises(BaseModelError, match="being replayed"):
            trunk_states(base, padded(rows()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradients_above_the_tap_are_those_of_the_full_model(
    family: str, checkpointing: bool
) -> None:
    base = tiny_base(family)
    batch = padded(rows())
    trunk = trunk_states(base, batch)
    above = [w for b in blocks(base.model, base.anatomy)[2:] for w in b.parameters()]
    for weight in above:
        weight.requires_grad_(True)
    base.model.train()
    if checkpointing:
        base.model.gradient_checkpointing_enable({"use_reentrant": False})

    def loss() -> Tensor:
        return base.model(**model_inputs(batch), use_cache=False).logits.square().mean()

    full = torch.autograd.grad(loss(), above)
    with replay(base, trunk.hidden):
        from_tap = loss()
    replayed = torch.autograd.grad(from_tap, above)  # after the replay has ended
    assert all(torch.equal(a, b) for a, b in zip(full, replayed, strict=True))


def test_trunk_states_ignore_dropout_and_leave_the_training_flags() -> None:
    base = tiny_base("gpt2")
    base.model.transformer.drop.p = 0.5
    batch = padded(rows())
    still = trunk_states(base, batch).hidden
    base.model.transformer.train()
    flags = [module.training for module in base.model.modules()]
    assert torch.equal(trunk_states(base, batch).hidden, still)
    assert [module.training for module in base.model.modules()] == flags


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes_the_check_of_its_replay_once(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, calls = tiny_base(family), []
    own = trunk_module.trunk_states

    def counted(*args: Any, **options: Any) -> TrunkBatch:
        calls.append(1)
        return own(*args, **options)

    monkeypatch.setattr(trunk_module, "trunk_states", counted)
    for _ in range(2):
        check_replay(base)
    assert len(calls) == 1


def test_a_replay_that_gives_other_logits_is_refused_every_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = tiny_base()
    own = trunk_module.trunk_states

    def altered(*args: Any, **options: Any) -> TrunkBatch:
        found = own(*args, **options)
        return TrunkBatch(found.hidden + 0.1, found.features)

    monkeypatch.setattr(trunk_module, "trunk_states", altered)
    for _ in range(2):
        with pytest.raises(BaseModelError, match="do not give the whole model's logits"):
            check_replay(base)
    monkeypatch.undo()
    check_replay(base)


def test_what_a_familys_code_raises_in_a_replay_is_told_as_its_cause() -> None:
    base = tiny_base()
    last = blocks(base.model, base.anatomy)[-1]

    def fails(*_: Any) -> None:
        if is_skipped(blocks(base.model, base.anatomy)[0]):
            raise KeyError("state of block 0")

    last.register_forward_pre_hook(fails)
    with pytest.raises(BaseModelError, match="it fails") as found:
        check_replay(base)
    assert isinstance(found.value.__cause__, KeyError)


def test_a_base_that_overflows_is_named_so_and_its_replay_is_not_blamed() -> None:
    base = tiny_base()
    head = base.model.get_submodule(base.anatomy.head_name)
    head.register_forward_hook(lambda _m, _a, output: output * float("inf"))
    with pytest.raises(BaseModelError, match="load it in bf16 or fp32"):
        check_replay(base)
