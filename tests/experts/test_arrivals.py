"""Experts come from their files, ahead of their use or at it, and a broken one harms no other."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dylora_moe.errors import ArtifactError, ExpertError
from dylora_moe.experts.gates import Gates
from tests.experts.builders import logits, registered, stored


def refusing(file: Path) -> None:
    raise ArtifactError(f"{file} is damaged")


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


def test_a_file_that_took_another_shape_is_never_broadcast(tmp_path: Path) -> None:
    manager = registered(tmp_path, 1)
    file = tmp_path / "0" / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "lora_B" in key)
    tensors[key] = tensors[key][:, :1].contiguous()
    save_file(tensors, file)
    with pytest.raises(ExpertError, match=r"lora_B.* as \[\d+, 1\] and not"):
        manager.touch(["expert_0"])


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
