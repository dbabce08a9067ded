"""Three places an expert can be: in the layers, in CPU memory, in its files alone."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from dylora_moe.errors import ArtifactError, ExpertError
from dylora_moe.experts.adapters import Adapters
from dylora_moe.experts.gates import Gates
from dylora_moe.experts.manager import ExpertManager
from dylora_moe.experts.tiers import default_budgets
from tests.experts.builders import ids, logits, manager_of, scramble, with_experts
from tests.models import FAMILIES


def stored(tmp_path: Path, count: int = 3, family: str = "llama") -> tuple[ExpertManager, Path]:
    """A manager with no experts yet, and folders `0`, `1`, ... of saved ones."""
    source = with_experts(family, ranks=tuple(4 + i % 2 for i in range(count)))
    for i in range(count):
        source.save(f"expert_{i}", tmp_path / str(i))
    return manager_of(family), tmp_path


def registered(tmp_path: Path, count: int = 3, family: str = "llama") -> ExpertManager:
    manager, folder = stored(tmp_path, count, family)
    for i in range(count):
        manager.register(f"expert_{i}", manager.stored(folder / str(i)))
    return manager


def adapter_parameters(manager: ExpertManager) -> int:
    return sum(p.numel() for n, p in manager.model.named_parameters() if "lora_" in n)


def flip(file: Path) -> None:
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    file.write_bytes(body)


def refusing(file: Path) -> None:
    raise ArtifactError(f"{file} is damaged")


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


def test_a_trained_expert_is_never_dropped_to_its_stale_file(tmp_path: Path) -> None:
    manager = registered(tmp_path, 4)
    manager.set_trainable({"expert_0"})
    with torch.no_grad():
        for parameter in manager.trainable_parameters("expert_0"):
            parameter.data.add_(1.0)
    manager.freeze()
    with torch.no_grad():
        next(iter(manager.parameters_of("expert_1").values())).add_(1.0)
    scramble(manager, "expert_2", seed=9)
    manager.grow_rank("expert_3", 9)
    gates = Gates(manager.names, torch.full((2, 4), 0.25))
    expected = logits(manager, gates)
    manager.keep_on_device(0)
    assert {manager.tier(name) for name in manager.names} == {"memory"}
    manager.keep_on_device(None)
    manager.touch(manager.names)
    assert torch.equal(logits(manager, gates), expected)
    assert not manager.is_stored_in("expert_0", tmp_path / "0")


def test_an_expert_that_was_saved_can_leave_for_its_new_files(tmp_path: Path) -> None:
    manager = registered(tmp_path, 1)
    scramble(manager, "expert_0", seed=9)
    state = manager.state("expert_0")
    manager.create_expert("expert_made")
    manager.save("expert_made", tmp_path / "made")
    manager.saved_as("expert_made", manager.stored(tmp_path / "made"))
    manager.offload("expert_made")
    assert manager.tier("expert_made") == "disk"
    manager.save("expert_0", tmp_path / "v2")
    manager.offload("expert_0")
    assert manager.tier("expert_0") == "memory"
    manager.saved_as("expert_0", manager.stored(tmp_path / "v2"))
    assert manager.tier("expert_0") == "disk"
    assert manager.is_stored_in("expert_0", tmp_path / "v2")
    assert all(torch.equal(state[key], value) for key, value in manager.state("expert_0").items())
    manager.set_trainable({"expert_0"})
    with pytest.raises(ExpertError, match="in training"):
        manager.saved_as("expert_0", manager.stored(tmp_path / "v2"))
    manager.grow_rank("expert_0", 6)
    manager.freeze()
    with pytest.raises(ExpertError, match="other shapes"):
        manager.saved_as("expert_0", manager.stored(tmp_path / "v2"))


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


def test_a_damaged_file_speaks_at_first_touch_and_harms_no_other(tmp_path: Path) -> None:
    manager, folder = stored(tmp_path, 3)
    manager.register("expert_0", manager.stored(folder / "0"))
    manager.register("expert_bad", manager.stored(folder / "1", check=refusing))
    manager.register("expert_2", manager.stored(folder / "2"))
    gates = Gates.only("expert_0", 2)
    manager.touch(["expert_0"])
    before = logits(manager, gates)
    for _ in range(2):
        with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors is damaged"):
            manager.touch(["expert_0", "expert_bad", "expert_2"])
        assert manager.resident == ("expert_0",)
    for call in (manager.parameters_of, manager.state, manager.set_active_expert):
        with pytest.raises(ArtifactError):
            call("expert_bad")
    assert manager.pinned is None
    manager.touch(["expert_2"])
    assert torch.equal(logits(manager, gates), before)
    (folder / "2" / "adapter_model.safetensors").write_bytes(b"short")
    manager.offload("expert_2")
    with pytest.raises(ExpertError, match=r"2/adapter_model\.safetensors is damaged"):
        manager.touch(["expert_2"])
    manager.remove("expert_bad")
    assert manager.names == ("expert_0", "expert_2")


def test_what_is_prefetched_is_what_a_touch_gives(tmp_path: Path) -> None:
    manager = registered(tmp_path, 3)
    threads: list[str] = []

    def noting(_: Path) -> None:
        threads.append(threading.current_thread().name)

    manager.register("expert_ahead", manager.stored(tmp_path / "2", check=noting))
    manager.prefetch(["expert_ahead", "expert_0"])
    manager.prefetch(["expert_ahead"])
    assert manager.resident == ()
    manager.touch(["expert_ahead", "expert_0", "expert_2"])
    assert len(threads) == 1
    assert threads[0].startswith("dylora-prefetch")
    found = logits(manager, Gates.only("expert_ahead", 2))
    assert torch.equal(found, logits(manager, Gates.only("expert_2", 2)))
    manager.prefetch(manager.names)
    manager.offload("expert_2")
    manager.prefetch(["expert_2"])
    manager.unload()
    assert manager.names == ()


def test_an_error_of_the_background_is_raised_at_touch_and_later_reads_try_anew(
    tmp_path: Path,
) -> None:
    manager, folder = stored(tmp_path, 2)
    broken = [True]

    def check(file: Path) -> None:
        if broken[0]:
            refusing(file)

    manager.register("expert_0", manager.stored(folder / "0", check=check))
    manager.register("expert_1", manager.stored(folder / "1"))
    manager.prefetch(["expert_0", "expert_1"])
    with pytest.raises(ArtifactError, match="damaged"):
        manager.touch(["expert_0", "expert_1"])
    broken[0] = False
    manager.touch(["expert_0", "expert_1"])
    assert set(manager.resident) == {"expert_0", "expert_1"}


def test_after_a_failure_no_older_error_is_raised(tmp_path: Path) -> None:
    manager, folder = stored(tmp_path, 2)
    broken = [True]

    def check(file: Path) -> None:
        if broken[0]:
            refusing(file)

    for name in ("expert_0", "expert_1"):
        manager.register(name, manager.stored(folder / name[-1], check=check))
    manager.prefetch(["expert_0", "expert_1"])
    for future in manager._tiers._arrivals._prefetcher._begun.values():
        assert future.exception() is not None
    with pytest.raises(ArtifactError, match="damaged"):
        manager.touch(["expert_0", "expert_1"])
    broken[0] = False
    manager.touch(["expert_1"])
    assert manager.resident == ("expert_1",)


def test_an_expert_that_came_in_inference_mode_can_learn(tmp_path: Path) -> None:
    manager = registered(tmp_path, 1)
    with torch.inference_mode():
        manager.touch(["expert_0"])
        logits(manager, Gates.only("expert_0", 2))
    manager.set_trainable(["expert_0"])
    with manager.slot.bound(Gates.only("expert_0", 2)):
        manager.model(ids(), use_cache=False).logits.square().mean().backward()
    assert all(p.grad is not None for p in manager.trainable_parameters("expert_0"))


def test_a_file_that_took_another_shape_is_never_broadcast(tmp_path: Path) -> None:
    manager = registered(tmp_path, 1)
    file = tmp_path / "0" / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "lora_B" in key)
    tensors[key] = tensors[key][:, :1].contiguous()
    save_file(tensors, file)
    with pytest.raises(ExpertError, match=r"lora_B.* as \[\d+, 1\] and not"):
        manager.touch(["expert_0"])


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


def test_files_of_an_expert_in_training_are_not_its_own(tmp_path: Path) -> None:
    manager, folder = stored(tmp_path, 1)
    manager.load("expert_0", folder / "0")
    manager.set_trainable(["expert_0"])
    with pytest.raises(ExpertError, match="in training: its numbers are no file's yet"):
        manager.saved_as("expert_0", manager.stored(folder / "0"))


def test_a_prefetch_takes_at_most_a_quarter_of_the_budget_and_old_ones_give_way(
    tmp_path: Path,
) -> None:
    manager = registered(tmp_path, 4)
    manager.keep_on_device(4 * manager.bytes("expert_1"))
    arrivals = manager._tiers._arrivals
    manager.prefetch(["expert_0", "expert_2"])
    assert "expert_0" in arrivals
    assert "expert_2" not in arrivals
    manager.touch(["expert_3"])
    arrivals._prefetcher._begun["expert_0"].result()
    manager.prefetch(["expert_2"])
    assert "expert_0" not in arrivals
    assert "expert_2" in arrivals


def test_many_threads_that_touch_and_prefetch_end_with_the_same_numbers(tmp_path: Path) -> None:
    manager = registered(tmp_path, 6)
    expected = {name: manager.state(name) for name in manager.names}
    manager.keep_on_device(2 * manager.bytes("expert_1"))

    def work(shift: int) -> None:
        for step in range(12):
            name = f"expert_{(step + shift) % 6}"
            manager.prefetch([name])
            manager.touch([name])

    threads = [threading.Thread(target=work, args=(shift,), daemon=True) for shift in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    for name, state in expected.items():
        found = manager.parameters_of(name)
        assert all(torch.equal(found[key], value) for key, value in state.items())


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


def test_dropout_and_pinning_survive_coming_and_going(tmp_path: Path) -> None:
    source = manager_of()
    source.create_expert("expert_0", rank=4, dropout=0.5)
    scramble(source, "expert_0")
    source.save("expert_0", tmp_path / "0")
    manager = manager_of()
    manager.train_dropout(True)
    manager.register("expert_0", manager.stored(tmp_path / "0"))
    manager.set_active_expert("expert_0", trainable=False)
    layers = [m for m in manager.model.modules() if isinstance(m, LoraLayer)]
    assert all(layer.lora_dropout["expert_0"].training for layer in layers)
    assert all(layer.active_adapters == ["expert_0"] for layer in layers)
    manager.offload("expert_0")
    manager.train_dropout(False)
    manager.touch(["expert_0"])
    assert not any(layer.lora_dropout["expert_0"].training for layer in layers)
    assert manager.pinned == "expert_0"


def test_without_a_device_the_layers_get_a_gigabyte() -> None:
    assert default_budgets(torch.device("cpu")) == (1 << 30, 0)
