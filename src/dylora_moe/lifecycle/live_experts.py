"""The experts of a revision in memory: which come, which go, which are read again.

Knows versions, their files and the manager; knows nothing of skills or routing. Numbers are read
when an expert is first needed, so opening a pool costs a header for each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dylora_moe.errors import ArtifactError, ExpertError
from dylora_moe.experts.adapter_files import StoredExpert
from dylora_moe.experts.adapter_tensors import key_a, key_b
from dylora_moe.experts.manager import ExpertManager
from dylora_moe.experts.packed import Packed
from dylora_moe.ports import ArtifactStore
from dylora_moe.records import ExpertVersion


@dataclass(frozen=True, eq=False)
class ExpertsToBe:
    """What becomes of the experts in memory; nothing happened yet.

    Attributes:
        leaving: experts that are of no use any more, or of other numbers.
        coming: experts of the revision that are not there, with their numbers where they take the
            place of what is in memory now.
        kept: experts that stay, whose numbers no file was known to hold, and which files do.
    """

    leaving: Sequence[str]
    coming: Mapping[str, tuple[StoredExpert, Packed | None]]
    kept: Mapping[str, StoredExpert]

    def settle(self, experts: ExpertManager) -> None:
        """Makes it so. Nothing is left in training."""
        for name in self.leaving:
            experts.remove(name)
        for name, (stored, packed) in self.coming.items():
            experts.register(name, stored, packed)
        experts.freeze()
        experts.activate_all_experts()
        for name, stored in self.kept.items():
            experts.saved_as(name, stored)


def experts_to_be(
    experts: ExpertManager,
    artifacts: ArtifactStore,
    wanted: Sequence[ExpertVersion],
    versions: Mapping[str, int],
    dirty: Collection[str],
) -> ExpertsToBe:
    """Compares what is in memory with what a revision wants; changes nothing.

    Args:
        experts: of the live pool.
        artifacts: its files.
        wanted: the experts of the revision.
        versions: version of each expert in memory.
        dirty: experts that may have been changed in memory.

    Raises:
        ArtifactError: a file is missing or truncated, or, of an expert whose numbers in memory
            have to be replaced, damaged in any way.
        ExpertError: an adapter that does not fit the base.
    """
    there = set(experts.names)
    numbers = {version.expert_id: version for version in wanted}

    def is_stale(name: str) -> bool:
        version = numbers.get(name)
        if version is None or version.version != versions.get(name):
            return True
        return name in dirty and not experts.is_stored_in(name, _folder(artifacts, version))

    stale = [name for name in experts.names if is_stale(name)]
    coming: dict[str, tuple[StoredExpert, Packed | None]] = {}
    kept: dict[str, StoredExpert] = {}
    for name, version in numbers.items():
        if name not in there:
            coming[name] = stored_expert(experts, artifacts, version), None
        elif name in stale:
            stored = stored_expert(experts, artifacts, version)
            coming[name] = stored, stored.read() if experts.tier(name) != "disk" else None
        elif not experts.is_stored_in(name, _folder(artifacts, version)):
            # Should its files be gone, or hold other numbers, it goes on in memory.
            with contextlib.suppress(ArtifactError, ExpertError):
                stored = experts.stored(_folder(artifacts, version), _check(artifacts, version))
                if _holds(stored, experts.state(name)):
                    kept[name] = stored
    return ExpertsToBe(stale, coming, kept)


def stored_expert(
    experts: ExpertManager, artifacts: ArtifactStore, version: ExpertVersion
) -> StoredExpert:
    """A version's files, of which the header was found to fit the base; their hashes are checked
    whenever the numbers are read.

    Raises:
        ArtifactError: a file is missing or truncated.
        ExpertError: an adapter that does not fit the base.
    """
    check = _check(artifacts, version)
    try:
        return experts.stored(_folder(artifacts, version), check)
    except ExpertError:
        # Where it is the file's fault, its hash says so, with what helps in a pool.
        check(_folder(artifacts, version))
        raise


def _holds(stored: StoredExpert, state: Mapping[str, Tensor]) -> bool:
    """Whether the files hold exactly these numbers."""
    found: dict[str, Tensor] = {}
    for path, (down, up) in stored.read().matrices().items():
        found[key_a(path)], found[key_b(path)] = down, up
    same = found.keys() == state.keys()
    return same and all(torch.equal(value, found[key]) for key, value in state.items())


def _folder(artifacts: ArtifactStore, version: ExpertVersion) -> Path:
    return artifacts.root / version.storage_path


def _check(artifacts: ArtifactStore, version: ExpertVersion) -> Callable[[Path], None]:
    def check(_: Path) -> None:
        for artifact in version.files:
            artifacts.open(artifact)

    return check
