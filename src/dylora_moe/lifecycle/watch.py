"""What the learner tells a front while it works. Knows nothing of terminals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from dylora_moe.lifecycle.results import LearnResult
from dylora_moe.records import Verdict


class Watch(Protocol):
    """Implemented by a front (the command line, a notebook, a server's job)."""

    def stage(self, name: str, detail: str = "") -> None:
        """A new piece of work began: `observe`, `verdict`, `seeding`, `consolidation`, ..."""
        ...

    def progress(self, done: int, total: int, values: Mapping[str, Any]) -> None:
        """`done` of `total` steps of the current stage; the last numbers logged."""
        ...

    def verdict(self, arrival: str, verdict: Verdict) -> None: ...

    def result(self, result: LearnResult) -> None: ...

    def warning(self, message: str) -> None: ...


class Silent:
    """A watch that says nothing: the library's default."""

    def stage(self, name: str, detail: str = "") -> None:
        return None

    def progress(self, done: int, total: int, values: Mapping[str, Any]) -> None:
        return None

    def verdict(self, arrival: str, verdict: Verdict) -> None:
        return None

    def result(self, result: LearnResult) -> None:
        return None

    def warning(self, message: str) -> None:
        return None
