"""Who stays in the layers and who leaves them, by use and by budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer

from dylora_moe.experts.adapters import Adapters
from dylora_moe.experts.gates import Gates
from dylora_moe.experts.manager import ExpertManager
from dylora_moe.experts.tiers import default_budgets
from tests.experts.builders import logits, registered, scramble


def adapter_parameters(manager: ExpertManager) -> int:
    return sum(p.numel() for n, p in manager.model.named_parameters() if "lora_" in n)


def test_parameters_in_the_layers_follow_the_experts_in_use(tmp_path: Path) -> None:
    manager = registered(tmp_path, 6)
    sizes = {name: manager.parameter_count(name) for name in manager.names}
    manager.keep_on_device(2 * manager.bytes("expert_1"))
    for pair in (("expert_0", "expert_1"), ("expert_2", "expert_3"), ("expert_4", "expert_5")):
        manager.touch(pair)
        assert manager.resident == pair
        assert adapter_parameters(manager) == sum(sizes[name] for name in pair)
    manager.keep_on_device(0)
    assert adapter_parameters(manager) == 0
    layers = [m for m in manager.model.modules() if isinstance(m, LoraLayer)]
    assert layers
    assert not any(layer.r or layer.lora_dropout for layer in layers)


def test_experts_in_training_and_in_the_running_pass_stay(tmp_path: Path) -> None:
    manager = registered(tmp_path, 4)
    manager.set_trainable({"expert_0"})
    parameters = [id(p) for p in manager.parameters_of("expert_0").values()]
    manager.touch(["expert_1"])
    manager.keep_on_device(0)
    assert manager.resident == ("expert_0",)
    with manager.slot.bound(Gates.only("expert_2", 2)):
        manager.touch(["expert_2"])
        manager.touch(["expert_3"])
        assert set(manager.resident) == {"expert_0", "expert_2", "expert_3"}
    manager.touch(["expert_1"])
    assert set(manager.resident) == {"expert_0", "expert_1"}
    assert [id(p) for p in manager.parameters_of("expert_0").values()] == parameters
    wanted = {id(p) for p in manager.model.parameters() if p.requires_grad}
    assert wanted == set(parameters)


def test_the_least_recently_used_leaves_first_and_the_budget_is_held(tmp_path: Path) -> None:
    manager = registered(tmp_path, 5)
    budget = 3 * manager.bytes("expert_1")
    manager.keep_on_device(budget)
    manager.touch(["expert_0", "expert_1", "expert_2"])
    manager.touch(["expert_0"])
    manager.touch(["expert_3"])
    assert manager.resident == ("expert_2", "expert_0", "expert_3")
    manager.touch(["expert_4"])
    assert manager.resident == ("expert_0", "expert_3", "expert_4")
    assert sum(manager.bytes(name) for name in manager.resident) <= budget
    manager.touch(manager.names)
    assert set(manager.resident) == set(manager.names), "what one pass uses comes whatever its size"
    manager.touch(["expert_0"])
    assert manager.resident[-1] == "expert_0"
    assert sum(manager.bytes(name) for name in manager.resident) <= budget


def test_beside_a_device_copies_stay_in_memory_within_their_own_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No device here: what is copied there is copied all the same.
    monkeypatch.setattr(Adapters, "shares_memory", property(lambda _: False))
    manager = registered(tmp_path, 4)
    manager.create_expert("expert_new", rank=4)
    scramble(manager, "expert_new", seed=3)
    gates = Gates(manager.names, torch.full((2, 5), 0.2))
    manager.touch(manager.names)
    expected = logits(manager, gates)
    manager.keep_on_device(0)
    assert {manager.tier(name) for name in manager.names} == {"memory"}
    manager.touch(["expert_0"])
    manager.keep_in_memory(0)
    tiers = {name: manager.tier(name) for name in manager.names}
    assert tiers == {
        "expert_0": "device",
        "expert_1": "disk",
        "expert_2": "disk",
        "expert_3": "disk",
        "expert_new": "memory",
    }
    manager.prefetch(["expert_new", "expert_1"])
    manager.touch(manager.names)
    manager.keep_on_device(None)
    manager.touch(manager.names)
    assert torch.equal(logits(manager, gates), expected)
    scramble(manager, "expert_0", seed=11)
    changed = logits(manager, gates)
    manager.keep_on_device(0)
    manager.keep_on_device(None)
    manager.touch(manager.names)
    assert torch.equal(logits(manager, gates), changed)


def test_without_a_device_the_layers_get_a_gigabyte() -> None:
    assert default_budgets(torch.device("cpu")) == (1 << 30, 0)
