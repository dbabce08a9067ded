"""A pool to look into and to ask: everything that changes nothing.

Wires storage and base together; decides nothing itself. The base is only loaded when something
needs it, so listing experts is quick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

from dylora_moe.build.asking import Stream
from dylora_moe.build.opened import OpenedPool
from dylora_moe.lifecycle import exchange
from dylora_moe.lifecycle.answering import Sampling, answer
from dylora_moe.lifecycle.change import Stores
from dylora_moe.lifecycle.evaluating import Evaluation, evaluate
from dylora_moe.lifecycle.inbox import (
    InboxCluster,
    Known,
    cluster_inbox,
    inbox_features,
    newest,
)
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.names import find_expert
from dylora_moe.lifecycle.results import Answer
from dylora_moe.ports import ArtifactStore, Inbox, JobStore, Registry, Run
from dylora_moe.records import Event, ExpertVersion, PoolRevision, Turn
from dylora_moe.storage import pool_folder
from dylora_moe.text.reading import read_examples


class PoolReader:
    """A pool in a folder, for any number of processes at once; `Pool` learns as well."""

    def __init__(self, opened: OpenedPool) -> None:
        self._opened = opened
        self._storage = opened.storage
        self.meta: Mapping[str, Any] = opened.meta

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        dtype: str | None = None,
        expert_memory: int | None = None,
    ) -> Self:
        """Opens a pool; its base is loaded at the first question.

        Args:
            path: the pool's folder.
            device: what to compute on; the best there is where None.
            dtype: of the base; what the device is fast in where None.
            expert_memory: bytes that experts may take on the device; those that were not used for
                longest wait in their files. A quarter of a GPU's free memory, else 1 GiB, where
                None.

        Raises:
            PoolError: no pool there.
        """
        return cls(OpenedPool(pool_folder.open(path), device, dtype, None, expert_memory))

    def close(self) -> None:
        """Gives back the database; the pool object is done."""
        self._storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def path(self) -> Path:
        return self._storage.root

    @property
    def registry(self) -> Registry:
        return self._storage.registry

    @property
    def artifacts(self) -> ArtifactStore:
        return self._storage.artifacts

    @property
    def inbox(self) -> Inbox:
        """Prompts that no skill claimed."""
        return self._storage.inbox

    @property
    def jobs(self) -> JobStore:
        """What servers of the pool ran."""
        return self._storage.jobs

    @property
    def stores(self) -> Stores:
        """Everything that outlives the process, as a learner takes it."""
        return self._opened.stores

    @property
    def revision(self) -> PoolRevision:
        """What the pool is now."""
        return self._storage.registry.current()

    @property
    def live(self) -> LivePool:
        """The pool in memory, at its current revision; loads the base the first time.

        Raises:
            BaseModelError: the base cannot be found any more.
            PoolError: the base there is not the one the pool was made on.
            ArtifactError: a file of the pool is missing or damaged.
        """
        return self._opened.live

    def inbox_clusters(self) -> tuple[InboxCluster, ...]:
        """What the inbox is full of, the largest cluster first; the base is needed for its features
        where there is anything.

        Raises:
            ArtifactError: a file of the inbox is damaged.
        """
        entries = newest(self.inbox.entries())
        if not entries:
            return ()
        return cluster_inbox(Known.of(self.live), entries, inbox_features(self.live, entries))

    def experts(self) -> tuple[ExpertVersion, ...]:
        """The current version of every expert, oldest first."""
        return self.revision.experts

    def events(self, kind: str | None = None) -> list[Event]:
        """Everything that was decided, with its numbers, in order."""
        return self._storage.registry.events(kind)

    def unfinished(self) -> list[Run]:
        """Runs that the same command goes on with."""
        return list(self._storage.runs.unfinished())

    @overload
    def generate(self, prompts: str, **options: Any) -> Answer: ...

    @overload
    def generate(self, prompts: Sequence[str], **options: Any) -> list[Answer]: ...

    def generate(
        self, prompts: str | Sequence[str], *, expert: str | None = None, **sampling: Any
    ) -> Answer | list[Answer]:
        """Answers a prompt, or several in batches; each is routed by itself.

        Args:
            expert: alias of one expert for all, or `base`; the router decides where None.
            sampling: of `Sampling`: max_new_tokens, temperature, top_p, top_k, seed, stop.

        Raises:
            PoolError: no such expert.
        """
        listed = [prompts] if isinstance(prompts, str) else list(prompts)
        answers = answer(self.live, listed, expert=expert, sampling=Sampling(**sampling))
        return answers[0] if isinstance(prompts, str) else answers

    def chat(self, turns: Sequence[Turn], *, expert: str | None = None, **sampling: Any) -> Answer:
        """Answers a conversation; raises as `generate`."""
        return answer(self.live, [turns], expert=expert, sampling=Sampling(**sampling))[0]

    def drafts(
        self, prompts: Sequence[Sequence[Turn]], *, expert: str, **sampling: Any
    ) -> list[str]:
        """What an expert, or `base`, would answer to conversations, in batches; raises as
        `generate`."""
        answers = answer(self.live, list(prompts), expert=expert, sampling=Sampling(**sampling))
        return [found.text for found in answers]

    def stream(
        self, prompt: str | Sequence[Turn], *, expert: str | None = None, **sampling: Any
    ) -> Stream:
        """An answer piece by piece: iterate it; its `answer` is there afterwards."""
        return Stream(self.live, prompt, expert, Sampling(**sampling))

    def evaluate(
        self,
        files: Mapping[str, str | Path] | None = None,
        *,
        limit: int | None = None,
        generate: bool = True,
        expert: str | None = None,
    ) -> dict[str, Evaluation]:
        """Scores files by name, or the pool's own validation rows.

        Args:
            limit: rows of each.
            generate: also generate answers and check them.
            expert: pin one expert, or `base`, instead of routing.

        Raises:
            DataError: a file that cannot be read.
        """
        live = self.live
        if files is None:
            sets = {s.name: list(s.validation)[:limit] for s in live.skills.values()}
        else:
            sets = {name: read_examples(Path(file), limit) for name, file in files.items()}
        names = {skill.name: live.alias(skill.expert_id) for skill in live.skills.values()}
        return {
            name: evaluate(live, rows, generate=generate, expert=expert, right=names.get(name))
            for name, rows in sets.items()
            if rows
        }

    def export(self, name: str | None, folder: str | Path) -> list[Path]:
        """Copies one expert, or all, out as plain PEFT adapters with model cards.

        Raises:
            PoolError: no such expert, or a target folder that exists.
            ArtifactError: a stored file is damaged.
        """
        chosen = self.experts() if name is None else (find_expert(self.revision, name),)
        return exchange.export_experts(chosen, self.artifacts, Path(folder))
