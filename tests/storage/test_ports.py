from __future__ import annotations

import inspect

import pytest

from dylora_moe import ports
from dylora_moe.storage.artifacts import FileArtifacts
from dylora_moe.storage.examples import JsonlExamples
from dylora_moe.storage.inbox import FileInbox
from dylora_moe.storage.lock import FileLock
from dylora_moe.storage.registry import SqlRegistry
from dylora_moe.storage.runs import RunFolder, RunFolders

PAIRS = [
    (ports.Registry, SqlRegistry, 11),
    (ports.ArtifactStore, FileArtifacts, 5),
    (ports.ExampleStore, JsonlExamples, 5),
    (ports.PoolLock, FileLock, 1),
    (ports.RunStore, RunFolders, 2),
    (ports.JobStore, RunFolders, 2),
    (ports.JobFolder, RunFolder, 1),
    (ports.Inbox, FileInbox, 5),
]


@pytest.mark.parametrize(("port", "implementation", "at_least"), PAIRS)
def test_every_method_of_a_port_is_there_with_the_same_arguments(port, implementation, at_least):
    names = [name for name in vars(port) if not name.startswith("_")]
    assert len(names) >= at_least
    for name in names:
        asked, given = getattr(port, name), getattr(implementation, name)
        if isinstance(asked, property):
            assert isinstance(given, property)
        else:
            assert list(inspect.signature(given).parameters) == list(
                inspect.signature(asked).parameters
            )
