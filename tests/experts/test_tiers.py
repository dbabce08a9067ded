"""An expert is the same in the layers, in CPU memory, and in its files alone."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer

from dylora_moe.experts.gates import Gates
from tests.experts.builders import (
    ids,
    logits,
    manager_of,
    registered,
    scramble,
    stored,
    with_experts,
)
from tests.models import FAMILIES


def test_a_thousand_registered_experts_add_no_module_and_no_parameter(tmp_path: Path) -> None:
    manager, folder = stored(tmp_path, 1)
    modules = [type(m) for m in manager.model.modules()]
    count = sum(p.numel() for p in manager.model.parameters())
    for i in range(1000):
        manager.register(f"expert_{i}", manager.stored(folder / "0"))
    assert len(manager.names) == len(manager.offloaded) == 1000
    assert sum(manager.parameter_count(name) for name in manager.names) > 1000
    assert all(manager.config(name)["r"] == 4 for name in manager.names[:3])
    assert manager.tier("expert_999") == "disk"
    assert [type(m) for m in manager.model.modules()] == modules
    assert sum(p.numel() for p in manager.model.parameters()) == count


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("on_file", [True, False])
def test_an_expert_that_left_and_came_back_computes_the_same_bit_for_bit(
    family: str, on_file: bool, tmp_path: Path
) -> None:
    manager = registered(tmp_path, 2, family) if on_file else with_experts(family, ranks=(4, 5))
    gates = Gates(("expert_1", "expert_0"), torch.tensor([[0.3, 0.7], [1.0, 0.0]]))
    manager.touch(("expert_0", "expert_1"))
    before = logits(manager, gates)
    assert not torch.equal(before, logits(manager, None))
    for name in ("expert_0", "expert_1"):
        manager.offload(name)
        assert manager.tier(name) == ("disk" if on_file else "memory")
    assert torch.equal(logits(manager, None), logits(manager, gates)), "none of them is there"
    manager.touch(("expert_1", "expert_0"))
    assert torch.equal(logits(manager, gates), before)


def test_an_expert_put_into_a_layer_is_what_peft_itself_makes_of_it(tmp_path: Path) -> None:
    manager = registered(tmp_path, 1)
    manager.create_expert("expert_peft", rank=4, alpha=8.0)
    manager.touch(["expert_0"])
    layers = [m for m in manager.model.modules() if isinstance(m, LoraLayer)]
    assert layers
    for layer in layers:
        for key in (*layer.adapter_layer_names, *layer.other_param_names):
            held = getattr(layer, key)
            assert ("expert_0" in held) == ("expert_peft" in held), key
            if "expert_0" in held:
                mine, theirs = held["expert_0"], held["expert_peft"]
                same = repr(mine) == repr(theirs)
                assert same if isinstance(mine, torch.nn.Module) else mine == theirs, key


def test_methods_that_read_an_expert_at_rest_leave_it_there(tmp_path: Path) -> None:
    manager = registered(tmp_path, 2)
    state = manager.state("expert_0")
    assert manager.tier("expert_0") == "disk"
    manager.save("expert_0", tmp_path / "again")
    assert manager.tier("expert_0") == "disk"
    name = "adapter_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "0" / name).read_bytes()
    parameters = manager.parameters_of("expert_0")
    assert manager.resident == ("expert_0",)
    assert parameters.keys() == state.keys()
    assert all(torch.equal(parameters[key], state[key]) for key in state)
    manager.create_expert("expert_new", rank=8, start_from={"expert_1": 1.0})
    assert manager.tier("expert_1") == "device"
    manager.remove("expert_0")
    manager.grow_rank("expert_1", 8)
    assert manager.names == ("expert_1", "expert_new")


def test_an_expert_that_came_in_inference_mode_can_learn(tmp_path: Path) -> None:
    manager = registered(tmp_path, 1)
    with torch.inference_mode():
        manager.touch(["expert_0"])
        logits(manager, Gates.only("expert_0", 2))
    manager.set_trainable(["expert_0"])
    with manager.slot.bound(Gates.only("expert_0", 2)):
        manager.model(ids(), use_cache=False).logits.square().mean().backward()
    assert all(p.grad is not None for p in manager.trainable_parameters("expert_0"))


def test_experts_are_brought_and_switched_under_one_lock(tmp_path: Path) -> None:
    manager = registered(tmp_path, 1)
    free, settle = [], manager._settle

    def settled() -> None:
        other = threading.Thread(
            target=lambda: free.append(manager._tiers.lock.acquire(blocking=False))
        )
        other.start()
        other.join()
        settle()

    manager._settle = settled
    manager.touch(["expert_0"])
    assert free == [False]


def test_dropout_and_pinning_survive_coming_and_going(tmp_path: Path) -> None:
    source = manager_of()
    source.create_expert("expert_0", rank=4, dropout=0.5)
    scramble(source, "expert_0")
    source.save("expert_0", tmp_path / "0")
    manager = manager_of()
    manager.train_dropout(True)
    manager.register("expert_0", manager.stored(tmp_path / "0"))
    manager.set_active_expert("expert_0", trainable=True)
    layers = [m for m in manager.model.modules() if isinstance(m, LoraLayer)]
    assert all(layer.lora_dropout["expert_0"].training for layer in layers)
    manager.set_active_expert("expert_0", trainable=False)
    assert not any(layer.lora_dropout["expert_0"].training for layer in layers)
    assert all(layer.active_adapters == ["expert_0"] for layer in layers)
    manager.offload("expert_0")
    manager.train_dropout(False)
    manager.touch(["expert_0"])
    assert not any(layer.lora_dropout["expert_0"].training for layer in layers)
    assert manager.pinned == "expert_0"
