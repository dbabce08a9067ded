"""The versions that are on trial, and which version of each expert a request gets.

Knows the live pool, rules and counts; knows no requests.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping

from dylora_moe.errors import DyLoRAError
from dylora_moe.lifecycle.live import LivePool
from dylora_moe.lifecycle.trial import weigh_versions
from dylora_moe.records import Interval
from dylora_moe.serving.engine.canary import Canary, CanaryRule
from dylora_moe.serving.engine.notes import Note, OnNote
from dylora_moe.serving.engine.versions import Ref, Versions

Weighing = Generator[None, None, Interval | None]


class Taken(Mapping[str, int]):
    """The version of each expert that one request takes, chosen when it first needs the expert.

    Args:
        in_service: version of each expert of the revision.
        trials: those on trial, by expert.
        instead: versions to take instead of the ones in service.
    """

    def __init__(
        self, in_service: Mapping[str, int], trials: Mapping[str, Canary], instead: dict[str, int]
    ) -> None:
        self._in_service, self._trials, self._chosen = in_service, trials, instead

    def __getitem__(self, expert_id: str) -> int:
        if expert_id not in self._chosen:
            canary = self._trials.get(expert_id)
            self._chosen[expert_id] = (
                self._in_service[expert_id] if canary is None else canary.choose()
            )
        return self._chosen[expert_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._in_service)

    def __len__(self) -> int:
        return len(self._in_service)

    def is_on_trial(self, ref: Ref) -> bool:
        """Whether this is a version on trial."""
        canary = self._trials.get(ref[0])
        return canary is not None and canary.new == ref[1]


class Trials:
    """New versions of experts on their way into service.

    Args:
        live: the pool in memory.
        versions: which adapter is which version.
        rule: how a version is tried; None: it is in service at once.
        on_note: told what becomes of them.
    """

    def __init__(
        self, live: LivePool, versions: Versions, rule: CanaryRule | None, on_note: OnNote
    ) -> None:
        self._live, self._versions, self._rule, self._on_note = live, versions, rule, on_note
        self._running: dict[str, Canary] = {}
        self._weighing: dict[str, Weighing] = {}
        self._refused: dict[str, tuple[int, int]] = {}
        # What a newer version is held against, and what answers should it fail: never one that is
        # on trial or was refused itself.
        self._passed = dict(live.versions)

    def moved(self) -> None:
        """The pool became another revision: newer versions of experts go on trial."""
        now = self._live.versions
        for expert_id in [one for one, c in self._running.items() if now.get(one) != c.new]:
            self._stop(expert_id)
        # Adapters beside those in service have left; what was begun is begun again.
        self._weighing.clear()
        self._refused = {e: pair for e, pair in self._refused.items() if now.get(e) == pair[0]}
        self._passed = {e: self._passed.get(e, version) for e, version in now.items()}
        for expert_id, new in now.items():
            old = self._passed[expert_id]
            if self._rule is None or new <= old:
                # An older one was put back: by somebody who knows it, so it is tried no more.
                self._passed[expert_id] = new
            elif expert_id not in self._running and expert_id not in self._refused:
                self._begin(Canary(expert_id, old, new, self._rule), self._rule.share)

    def taken(self) -> Taken:
        """The version of each expert that the next request takes."""
        fixed = {expert_id: old for expert_id, (_, old) in self._refused.items()}
        return Taken(self._live.versions, dict(self._running), fixed)

    def count(self, versions: Collection[Ref], well: bool) -> None:
        """Takes how an answer of these versions, which took part in it, ended."""
        for expert_id, version in versions:
            if expert_id in self._running:
                self._running[expert_id].count(version, well)
        self._settle()

    def work(self) -> bool:
        """Does a little of what is to be weighed; whether there is more.

        A version that cannot be weighed fails: nothing speaks for it.
        """
        for canary in list(self._running.values()):
            if canary.weighed:
                continue
            try:
                weighing = self._weighing_of(canary)
                if weighing is not None:
                    next(weighing)
                    return True
            except StopIteration as done:
                canary.weigh(done.value)
            except Exception as error:
                # Files that are damaged, memory that is full, or whatever a model raises.
                canary.fail(f"it could not be weighed: {error!r}")
            self._settle()
        return False

    def used(self) -> set[Ref]:
        """Versions that the next request may need."""
        pairs = {(e, v) for e, c in self._running.items() for v in (c.old, c.new)}
        return pairs | {(e, old) for e, (_, old) in self._refused.items()}

    def _begin(self, canary: Canary, share: float) -> None:
        self._running[canary.expert_id] = canary
        alias = self._versions.alias(canary.expert_id)
        numbers = {"expert": alias, "version": canary.new, "share": share}
        self._on_note(Note("canary", f"{alias}@{canary.new} is on trial", numbers))

    def _weighing_of(self, canary: Canary) -> Weighing | None:
        """None where there is nothing to hold it against: then it has won."""
        expert_id = canary.expert_id
        if expert_id not in self._weighing:
            try:
                old = self._versions.adapter((expert_id, canary.old))
            except DyLoRAError as error:
                # To go back to it would leave nobody to answer.
                canary.win(f"v{canary.old}, which it was to be held against, is broken: {error}")
                return None
            new = self._versions.adapter((expert_id, canary.new))
            self._weighing[expert_id] = weigh_versions(self._live, expert_id, old, new)
        return self._weighing[expert_id]

    def _settle(self) -> None:
        for expert_id, canary in list(self._running.items()):
            if canary.state == "on trial":
                continue
            self._stop(expert_id)
            alias = self._versions.alias(expert_id)
            numbers = {"expert": alias, "version": canary.new}
            if canary.state == "passed":
                self._passed[expert_id] = canary.new
                message = f"{alias}@{canary.new} is in service: {canary.reason}"
                self._on_note(Note("canary promoted", message, numbers))
                continue
            # At once for whoever asks from now on; the pool itself is taken back by its command.
            self._refused[expert_id] = canary.new, canary.old
            message = f"{alias}@{canary.new} is taken back: {canary.reason}"
            numbers |= {"expert_id": expert_id, "back_to": canary.old}
            self._on_note(Note("canary rolled back", message, numbers))

    def _stop(self, expert_id: str) -> None:
        del self._running[expert_id]
        self._weighing.pop(expert_id, None)
