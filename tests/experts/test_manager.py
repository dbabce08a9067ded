from __future__ import annotations

import math

import pytest
import torch
from peft.tuners.lora import LoraLayer

from dylora_moe.errors import ConfigError, ExpertError
from dylora_moe.experts.gates import Gates
from dylora_moe.experts.manager import ExpertManager
from dylora_moe.experts.mixture import MixtureLinear
from tests.experts.builders import ids, logits, manager_of, scramble, with_experts
from tests.models import FAMILIES, tiny


def test_without_experts_the_model_is_stock() -> None:
    manager = manager_of()
    assert manager.names == ()
    assert not any(isinstance(m, LoraLayer) for m in manager.model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_above_the_tap_is_ours_and_nothing_else(family: str) -> None:
    manager = manager_of(family)
    manager.create_expert("expert_a")
    head = manager.model.get_submodule(manager.anatomy.head_name)
    assert not isinstance(head, LoraLayer)
    paths = [p for p, m in manager.model.named_modules() if isinstance(m, LoraLayer)]
    inside = len(manager.anatomy.all_linear_targets)
    assert len(paths) >= 2 * inside > 0
    for path in paths:
        assert isinstance(manager.model.get_submodule(path), MixtureLinear)
        index = path.removeprefix(manager.anatomy.blocks_path + ".").split(".")[0]
        assert int(index) >= manager.anatomy.tap_layer


def test_a_new_expert_changes_nothing_and_is_frozen() -> None:
    manager = with_experts()
    gates = Gates.only("expert_0", 2)
    before = logits(manager, gates)
    manager.create_expert("expert_new", targets=["q_proj"])
    assert torch.equal(logits(manager, gates), before)
    assert torch.equal(logits(manager, Gates.only("expert_new", 2)), logits(manager, None))
    assert manager.trainable == frozenset()
    assert not any(p.requires_grad for p in manager.model.parameters())


def test_a_seed_says_where_an_expert_begins_and_moves_no_other_draw() -> None:
    manager = manager_of()
    torch.manual_seed(3)
    manager.create_expert("expert_a", seed=7)
    drawn = torch.rand(4)
    manager.create_expert("expert_b", seed=7)
    manager.create_expert("expert_c", seed=8)
    a, b, c = (list(manager.state(f"expert_{name}").values()) for name in "abc")
    assert all(torch.equal(one, other) for one, other in zip(a, b, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(a, c, strict=True))
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4))


def test_only_the_named_experts_require_gradients() -> None:
    manager = with_experts(ranks=(4, 4, 4))
    manager.set_active_expert("expert_1")
    assert manager.pinned == "expert_1"
    wanted = {id(p) for p in manager.parameters_of("expert_1").values()}
    assert {id(p) for p in manager.model.parameters() if p.requires_grad} == wanted
    manager.create_expert("expert_late")
    assert {id(p) for p in manager.model.parameters() if p.requires_grad} == wanted
    manager.activate_all_experts()
    assert manager.pinned is None
    assert manager.trainable == {"expert_1"}
    manager.set_trainable({"expert_0", "expert_2"})
    manager.freeze("expert_2")
    assert manager.trainable == {"expert_0"}
    assert not manager.trainable_parameters("expert_2")
    manager.freeze()
    assert not any(p.requires_grad for p in manager.model.parameters())


@pytest.mark.parametrize("name", ["0", "expert_", "expert_a.b", "default", "expert_a b", "q_proj"])
def test_names_that_peft_would_lose_are_refused(name: str) -> None:
    with pytest.raises(ExpertError, match="cannot name"):
        manager_of().create_expert(name)


def test_taken_names_unknown_names_and_wrong_numbers_are_refused() -> None:
    manager = with_experts()
    with pytest.raises(ExpertError, match="taken"):
        manager.create_expert("expert_0")
    for call in (manager.remove, manager.state, manager.set_active_expert, manager.offload):
        with pytest.raises(ExpertError, match="no expert expert_9"):
            call("expert_9")
    for bad in ({"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}):
        with pytest.raises(ConfigError):
            manager.create_expert("expert_x", **bad)
    with pytest.raises(ExpertError, match="no linear layer called lm_head"):
        manager.create_expert("expert_x", targets=["q_proj", "lm_head"])
    assert manager.names == ("expert_0", "expert_1")


def test_removing_one_leaves_the_others_and_the_model_can_be_stock_again() -> None:
    manager = with_experts()
    gates = Gates.only("expert_1", 2)
    before = logits(manager, gates)
    manager.set_active_expert("expert_0")
    manager.remove("expert_0")
    assert manager.pinned is None
    assert manager.trainable == frozenset()
    assert torch.equal(logits(manager, gates), before)
    with pytest.raises(ExpertError, match="unload"):
        ExpertManager(manager.model, manager.anatomy)
    manager.unload()
    assert not any(isinstance(m, LoraLayer) for m in manager.model.modules())
    with torch.no_grad():
        expected = tiny()(ids(), use_cache=False).logits
    assert torch.equal(logits(manager, None), expected)
    manager.create_expert("expert_0")
    assert manager.names == ("expert_0",)


def test_state_and_restore_bring_back_the_same_numbers_in_the_same_parameters() -> None:
    manager = with_experts()
    gates = Gates.only("expert_0", 2)
    best, before = manager.state("expert_0"), logits(manager, gates)
    parameters = list(map(id, manager.parameters_of("expert_0").values()))
    scramble(manager, "expert_0", seed=5)
    assert not torch.allclose(logits(manager, gates), before, atol=1e-2)
    manager.restore("expert_0", best)
    assert torch.equal(logits(manager, gates), before)
    assert parameters == list(map(id, manager.parameters_of("expert_0").values()))
    with pytest.raises(ExpertError, match="does not fit"):
        manager.restore("expert_0", {})


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_growing_the_rank_changes_nothing_and_leaves_room_to_learn(family: str) -> None:
    manager = with_experts(family)
    gates = Gates.only("expert_0", 2)
    before, count = logits(manager, gates), manager.parameter_count("expert_0")
    manager.grow_rank("expert_0", 8)
    assert torch.allclose(logits(manager, gates), before, atol=1e-5)
    assert manager.parameter_count("expert_0") == 2 * count
    assert manager.bytes("expert_0") == 8 * count
    assert manager.config("expert_0")["r"] == 8
    for key, value in manager.state("expert_0").items():
        if "lora_A" in key:
            assert (value[4:].abs().sum(1) > 0).all()
    with pytest.raises(ExpertError, match="rank 8 already"):
        manager.grow_rank("expert_0", 8)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_cutting_the_rank_takes_a_growth_back(family: str) -> None:
    manager = with_experts(family)
    before, config = manager.state("expert_0"), manager.config("expert_0")
    manager.grow_rank("expert_0", 8, seed=1)
    manager.cut_rank("expert_0", 4)
    after = manager.state("expert_0")
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert manager.config("expert_0") == config
    assert manager.rank("expert_0") == 4
    for rank in (0, 4, 5):
        with pytest.raises(ExpertError, match=f"cannot be cut to rank {rank}"):
            manager.cut_rank("expert_0", rank)


def test_what_a_growth_adds_is_of_its_seed_and_moves_nobody_else_s() -> None:
    found = []
    for own in (1, 2):
        manager = with_experts()
        torch.manual_seed(own)
        manager.grow_rank("expert_0", 8, seed=7)
        found.append(manager.state("expert_0"))
        expected = torch.rand(1, generator=torch.Generator().manual_seed(own))
        assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_below_the_block_that_learns_nothing_of_an_expert_does() -> None:
    manager = with_experts()
    manager.set_active_expert("expert_0")
    manager.learn_from(3)

    def learning() -> set[int]:
        return {
            int(key.split(".layers.")[1].split(".")[0])
            for key, one in manager.parameters_of("expert_0").items()
            if one.requires_grad
        }

    assert learning() == {3}
    manager.grow_rank("expert_0", 8)
    assert learning() == {3}, "also after PEFT has switched gradients as it sees fit"
    manager.set_trainable(["expert_0"])
    assert learning() == {2, 3}
    assert manager.learns_from == 0


def test_changes_are_those_of_the_deltas_block_by_block() -> None:
    manager = with_experts()
    before = manager.state("expert_0")
    assert manager.changes("expert_0", before) == pytest.approx({2: 0.0, 3: 0.0}, abs=1e-6)
    moved = {
        key: value * 2.0 if ".layers.3." in key and "lora_B" in key else value
        for key, value in before.items()
    }
    manager.restore("expert_0", moved)
    assert manager.changes("expert_0", before) == pytest.approx({2: 0.0, 3: 0.5}, abs=1e-6)
    # Another pair of matrices of the same product is no change.
    same = {key: value * (2.0 if "lora_A" in key else 0.5) for key, value in moved.items()}
    manager.restore("expert_0", same)
    assert manager.changes("expert_0", moved) == pytest.approx({2: 0.0, 3: 0.0}, abs=1e-6)
    manager.restore("expert_0", {key: torch.zeros_like(value) for key, value in same.items()})
    assert set(manager.changes("expert_0", moved).values()) == {math.inf}


def test_the_size_of_an_expert_is_known_before_it_is_made() -> None:
    manager = manager_of("gpt2")
    for targets in ("attention", "all-linear"):
        size = manager.parameters_of_shape(rank=3, targets=targets)
        manager.create_expert("expert_a", rank=3, targets=targets)
        assert size == manager.parameter_count("expert_a") > 0
        manager.remove("expert_a")


def test_an_expert_started_from_others_computes_their_weighted_sum() -> None:
    manager = with_experts(ranks=(3, 2))
    mixture = Gates(("expert_0", "expert_1"), torch.tensor([[0.25, 0.75]] * 2))
    sources = {"expert_0": 0.25, "expert_1": 0.75}
    manager.create_expert("expert_wide", rank=8, alpha=4.0, start_from=sources)
    wide = logits(manager, Gates.only("expert_wide", 2))
    assert torch.allclose(wide, logits(manager, mixture), atol=1e-4)
    for key, value in manager.state("expert_wide").items():
        if "lora_A" in key:
            assert (value.abs().sum(1) > 0).all(), "a direction of zeros in A and B never learns"
    manager.create_expert("expert_same", rank=3, alpha=8.0, start_from={"expert_0": 1.0})
    same = logits(manager, Gates.only("expert_same", 2))
    assert torch.allclose(same, logits(manager, Gates.only("expert_0", 2)), atol=1e-4)
    with pytest.raises(ExpertError, match="no expert expert_9"):
        manager.create_expert("expert_x", start_from={"expert_9": 1.0})
    assert "expert_x" not in manager.names


def test_a_merge_from_experts_that_learned_nothing_is_a_fresh_expert() -> None:
    manager = manager_of()
    manager.create_expert("expert_a")
    manager.create_expert("expert_b", start_from={"expert_a": 1.0})
    for key, value in manager.state("expert_b").items():
        assert ("lora_A" in key) == bool(value.abs().sum() > 0)


def test_the_least_recently_used_leave_the_device_first() -> None:
    manager = with_experts(ranks=(4, 4, 4))
    size = manager.bytes("expert_0")
    manager.keep_on_device(2 * size)
    assert manager.offloaded == ("expert_0",)
    manager.touch(("expert_0",))
    assert manager.offloaded == ("expert_1",)
    manager.set_trainable({"expert_2"})
    with pytest.raises(ExpertError, match="in training"):
        manager.offload("expert_2")
    manager.touch(("expert_1",))
    assert manager.offloaded == ("expert_0",)
    manager.create_expert("expert_3", rank=4)
    assert set(manager.offloaded) == {"expert_0", "expert_1"}
    manager.keep_on_device(None)
    manager.touch(manager.names)
    assert manager.offloaded == ()
