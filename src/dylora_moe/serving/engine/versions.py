"""Which adapter in the model is which version of an expert.

The version in service has the expert's own name, as everywhere. Older ones, which requests under
way began with, which are pinned, or which go on answering while a newer one is on trial, stand
beside it under a name with their number. Knows the live pool and its files; knows no requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from dylora_moe.errors import PoolError
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.live_experts import stored_expert
from dylora_moe.lifecycle.names import find_expert
from dylora_moe.ports import ArtifactStore, Registry
from dylora_moe.records import ExpertVersion

Ref = tuple[str, int]
"""An expert's id and version."""

_KEPT = 8
"""Older versions that stay at hand though no request uses them now."""


class Versions:
    """The versions that requests are answered by.

    Args:
        live: the pool in memory.
        registry: knows every version there ever was.
        artifacts: the pool's files.
    """

    def __init__(self, live: LivePool, registry: Registry, artifacts: ArtifactStore) -> None:
        self._live, self._registry, self._artifacts = live, registry, artifacts
        self._known: dict[Ref, ExpertVersion] = {}
        self._beside: OrderedDict[Ref, str] = OrderedDict()

    def find(self, name: str, version: int | None) -> ExpertVersion:
        """A version of the expert with this alias or id; the one in service where none is named.

        Raises:
            PoolError: no such expert in service, or no such version of it.
        """
        expert = find_expert(self._live.revision, name)
        if version is None or version == expert.version:
            return expert
        return self._version((expert.expert_id, version))

    def adapter(self, ref: Ref) -> str:
        """The adapter in the model that holds a version's numbers; registered where it is not yet.

        Raises:
            PoolError: no such version.
            ArtifactError: its files are missing or damaged.
        """
        expert_id, version = ref
        if self._live.versions.get(expert_id) == version:
            return expert_id
        if ref not in self._beside:
            stored = stored_expert(self._live.experts, self._artifacts, self._version(ref))
            name = f"{expert_id}v{version}"
            self._live.experts.register(name, stored)
            self._beside[ref] = name
        self._beside.move_to_end(ref)
        return self._beside[ref]

    def moved(self) -> None:
        """The pool became another revision, with which adapters beside it went out."""
        self._beside.clear()

    def release(self, used: Collection[Ref]) -> None:
        """Takes out versions that were not used for longest, but for these."""
        idle = [ref for ref in self._beside if ref not in used]
        for ref in idle[: max(0, len(idle) - _KEPT)]:
            self._live.experts.remove(self._beside.pop(ref))

    def alias(self, expert_id: str) -> str:
        """What people call the expert, one that left the pool by its id."""
        return self._live.alias(expert_id)

    def _version(self, ref: Ref) -> ExpertVersion:
        if ref not in self._known:
            expert_id, version = ref
            found = {one.version: one for one in self._registry.versions(expert_id)}
            if version not in found:
                alias = self._live.alias(expert_id)
                known = ", ".join(map(str, found)) or "none"
                raise PoolError(f"{alias} has no version {version}; there are: {known}")
            self._known[ref] = found[version]
        return self._known[ref]
