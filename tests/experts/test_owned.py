"""An expert leaves for files only while they hold its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dylora_moe.errors import ExpertError
from dylora_moe.experts.gates import Gates
from tests.experts.builders import logits, registered, scramble, stored


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


def test_files_of_an_expert_in_training_are_not_its_own(tmp_path: Path) -> None:
    manager, folder = stored(tmp_path, 1)
    manager.load("expert_0", folder / "0")
    manager.set_trainable(["expert_0"])
    with pytest.raises(ExpertError, match="in training: its numbers are no file's yet"):
        manager.saved_as("expert_0", manager.stored(folder / "0"))
